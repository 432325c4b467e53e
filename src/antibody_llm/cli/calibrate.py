"""``antibody calibrate``: what was found, how far to trust it, and the commands that use it."""

import shlex
from collections.abc import Mapping
from typing import Any

PRESET = "the model's own preset"
"""What the report calls what a model brings; ``calibration.report`` has it, and would bring torch."""


def lines(result: Any) -> list[str]:
    """A finished calibration as lines for a reader."""
    report, files = result.report, result.files
    found = next(point for point in report["points"] if point["name"] == "found")
    verb = "align" if report["stage"] == "alignment" else "finetune"
    failed = f", {report['num_failed']} failed" if report["num_failed"] else ""
    model = shlex.quote(str(report["aligned"] or report["model"]))
    return [
        f"{result.output}",
        f"  defence     {report['defence']} ({report['stage']}, {report['regime']})",
        f"  found       {found['setting']}  (trial {found['trial']} of {report['num_trials']}{failed})",
        *(f"  {_name(point):<12}{_figures(point)}" for point in report["points"]),
        "",
        report["verdict"],
        report["trust"],
        "",
        f"Open {files['report']}",
        f"antibody {verb} --config {shlex.quote(files['preset'])} --model {model} --output ...",
        f"antibody bench {shlex.quote(files['matrix'])} --output ...",
    ]


def _name(point: Mapping[str, Any]) -> str:
    return "preset" if point["name"] == PRESET else str(point["name"])


def _figures(point: Mapping[str, Any]) -> str:
    shown = []
    for name, what in (("harm", "harm"), ("refusal", "over-refusal"), ("accuracy", "accuracy")):
        mean = point["reported"][name]
        shown.append(f"{what} {100 * mean['value']:.1f} [{100 * mean['low']:.0f}, {100 * mean['high']:.0f}]")
    return ", ".join(shown)
