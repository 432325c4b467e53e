"""What a calibration leaves for readers: preset.yaml, matrix.yaml, report.html, report.json, trials.parquet."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from matplotlib.figure import Figure

from ..bench.outputs import page as filled
from ..data.roles import Stage
from ..files import whole, write_text
from .report import FOUND, FRONTIER, UNDEFENDED, Calibration, report
from .rows import REPORT
from .simulate import Simulator
from .space import all_options

PRESET, MATRIX, PAGE, VALUES, TRIALS = "preset.yaml", "matrix.yaml", "report.html", "report.json", "trials.parquet"
SHOWN = {"harm": "harmful score", "refusal": "over-refusal", "accuracy": "accuracy on the users' task"}


def write_calibration(folder: Path, found: Calibration, simulator: Simulator) -> tuple[dict[str, str], dict[str, Any]]:
    """Write every file; returns their paths by kind, and the content of report.json.

    Raises:
        OutputError: the folder cannot be written.
    """
    values = report(found)
    write_text(folder / PRESET, preset(found, values))
    write_text(folder / MATRIX, matrix(found, simulator))
    write_text(folder / VALUES, json.dumps(values, indent=1) + "\n")
    write_text(folder / PAGE, page(folder, found, values))
    with whole(folder / TRIALS) as temporary:
        pq.write_table(pa.Table.from_pylist(values["trials"]), temporary)
    files = {"preset": PRESET, "matrix": MATRIX, "report": PAGE, "values": VALUES, "trials": TRIALS}
    return {kind: str(folder / name) for kind, name in files.items()}, values


def preset(found: Calibration, values: Mapping[str, Any]) -> str:
    """The settings as a configuration file of the stage's verb, every option of the defence written out."""
    settings, point = found.settings, found.found
    assert point.setting is not None, "it was found by a trial"
    content: dict[str, Any] = {
        "defence": settings.defence,
        "regime": settings.regime,
        "options": all_options(Stage(settings.stage), settings.defence) | dict(point.setting.options),
    }
    if point.setting.training:
        content["training"] = dict(point.setting.training)
    head = f"{values['verdict']} {values['trust']}"
    comment = "".join(f"# {sentence}\n" for sentence in head.replace(". ", ".\n").splitlines())
    return f"{comment}{yaml.safe_dump(content, sort_keys=False)}"


def matrix(found: Calibration, simulator: Simulator) -> str:
    """The settings against the undefended model, on the rows of the report, as a matrix."""
    settings = found.settings
    content = simulator.matrix(settings.defence, found.found.setting, REPORT, found.seeds)
    plain = simulator.matrix("sft", None, REPORT, [0])["defences"]
    content |= {"title": f"{settings.defence}, calibrated", "defences": [*plain, *content["defences"]]}
    return yaml.safe_dump(content | {"baseline": "sft"}, sort_keys=False)


def page(folder: Path, found: Calibration, values: Mapping[str, Any]) -> str:
    """The whole page, which needs no other file."""
    verb = "align" if found.settings.stage == "alignment" else "finetune"
    return filled(
        "calibrate.html",
        "antibody_llm.calibration",
        **values,
        folder=str(folder),
        verb=verb,
        preset_text=yaml.safe_dump(yaml.safe_load(preset(found, values)), sort_keys=False),
        picture=_picture(values),
    )


def _picture(values: Mapping[str, Any]) -> str:
    """Harm against over-refusal and against accuracy: trials in grey, what was measured on other rows in colour."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, ("refusal", "accuracy"), strict=True):
        able = [trial for trial in values["trials"] if trial["score"] is not None]
        axis.plot(
            [100 * trial[name] for trial in able], [100 * trial["harm"] for trial in able],
            "o", color="#c3cbd0", markersize=4, label="trials, on the rows of the search",
        )  # fmt: skip
        for number, point in enumerate(values["points"]):
            _draw(axis, point, name, colour=f"C{number % 10}")
        points = [each for each in values["points"] if each["on_frontier"]]
        line = sorted(
            (100 * each["reported"][name]["value"], 100 * each["reported"]["harm"]["value"]) for each in points
        )
        axis.plot(*zip(*line, strict=True), "-", color="#5d6970", linewidth=0.7, zorder=0)
        reference, sign = values["points"][0]["reported"], -1 if name == "accuracy" else 1
        limit = reference["accuracy" if name == "accuracy" else "clean_refusal"]["value"]
        axis.axvline(
            100 * (limit + sign * values["limits"]["tolerance"]), color="#5d6970", linewidth=0.8, linestyle=":"
        )
        axis.set(xlabel=f"{SHOWN[name]}, percent", ylim=(-4, 104))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("harmful score, percent")
    axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return "".join(buffer.getvalue().partition("<svg")[1:])


def _draw(axis: Any, point: Mapping[str, Any], name: str, *, colour: str) -> None:
    x, y = point["reported"][name], point["reported"]["harm"]
    label = point["name"] if point["trial"] is None else f"{point['name']}: trial {point['trial']}"
    axis.errorbar(
        [100 * x["value"]], [100 * y["value"]],
        xerr=[[100 * (x["value"] - x["low"])], [100 * (x["high"] - x["value"])]],
        yerr=[[100 * (y["value"] - y["low"])], [100 * (y["high"] - y["value"])]],
        fmt={UNDEFENDED: "s", FOUND: "*", FRONTIER: "o"}.get(point["name"], "D"),
        markersize=11 if point["name"] == FOUND else 6, color=colour, elinewidth=1.2, label=label,
    )  # fmt: skip
