"""Settings found by `antibody calibrate`, on the lab and on a real model, without any preset.

    python -m benchmarks.calibration lab --output DIR [--write FILE]
    python -m benchmarks.calibration english --model ALIGNED --output DIR [--defence NAME] [--write FILE]

    lab        lab-aligned, full fine-tuning: 25 trials, at most 20 minutes on two cores; reported on 3 seeds x 400
               prompts (the half holds 256 harmful ones and 144 look-alikes) beside the lab's own preset
    english    an aligned model of the English world, LoRA: 8 trials, beside the defaults and the world's own preset

Everything begins with the defaults of the defence, which are the paper's. The same command goes on where it was killed.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antibody_llm.calibration import calibrate
from antibody_llm.events import Event, Progress

SETTINGS: dict[str, dict[str, Any]] = {
    "lab": {
        "regime": "full",
        "defence": "antibody",
        "trials": 25,
        "minutes": 20.0,
        "report_prompts": 400,
        "report_seeds": 3,
    },
    "english": {
        "regime": "lora",
        "defence": "antibody",
        "trials": 8,
        "rows": 200,
        "prompts": 64,
        "simulations": 2,
        "report_prompts": 200,
        "report_seeds": 1,
        "frontier": 1,
        "training": {"bf16": True},
        "batch_size": 64,
        "dtype": "bfloat16",
    },
}
MEASURES = ("harm", "refusal", "accuracy")


def compared(report: Mapping[str, Any]) -> dict[str, Any]:
    """What was found beside the model's own preset and beside the defaults, each measure with its interval."""
    points = {point["name"]: point["reported"] for point in report["points"]}
    found, found_setting = points["found"], next(p["setting"] for p in report["points"] if p["name"] == "found")
    against = {name: points[name] for name in ("the model's own preset", "defaults", "undefended") if name in points}
    return {
        "setting": found_setting,
        "trials": report["num_trials"],
        "search_minutes": report["search_seconds"] / 60,
        "found": {measure: found[measure] for measure in MEASURES},
        "beside": {
            name: {
                measure: each[measure] | {"overlaps": overlap(found[measure], each[measure])} for measure in MEASURES
            }
            for name, each in against.items()
        },
        "verdict": report["verdict"],
    }


def overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two intervals do."""
    return one["low"] <= other["high"] and other["low"] <= one["high"]


def heard(event: Event) -> None:
    """Print progress as lines, for a log."""
    if isinstance(event, Progress):
        print(f"[{event.done}/{event.total}] {event.what}", flush=True)


def main() -> None:
    """Calibrate, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("world", choices=list(SETTINGS))
    parser.add_argument("--model", default=None, help="the aligned model of the English world")
    parser.add_argument("--defence", default=None, help="by default antibody")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--write", type=Path, default=None, help="a file for the comparison and the whole report")
    given = parser.parse_args()
    if given.world == "english" and given.model is None:
        parser.error("english needs --model, an aligned model of the English world")
    settings = SETTINGS[given.world] | ({} if given.defence is None else {"defence": given.defence})
    result = calibrate(given.model or "lab-aligned", output=given.output, **settings, listen=heard)
    shown = compared(result.report)
    print(json.dumps(shown, indent=1))
    if given.write is not None:
        content = {"settings": settings, "compared": shown, "report": result.report}
        given.write.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
