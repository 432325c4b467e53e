"""What ``antibody anchors`` shows of its result."""

from typing import Any


def lines(result: Any) -> list[str]:
    """A model's anchors for a reader."""
    return [
        str(result.output),
        f"  harmful anchors  {result.num_harmful}",
        f"  benign anchors   {result.num_benign}",
        f"  new              {result.num_new}",
        f"  told apart       {result.auroc:.3f} (AUROC, held out)",
    ]
