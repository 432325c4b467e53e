"""The lines that ``antibody anchors`` prints."""

from typing import Any


def lines(result: Any) -> list[str]:
    """A model's anchors as lines for a reader."""
    return [
        str(result.output),
        f"  harmful anchors  {result.num_harmful}",
        f"  benign anchors   {result.num_benign}",
        f"  new              {result.num_new}",
        f"  separation       {result.auroc:.3f} (AUROC, held out)",
    ]
