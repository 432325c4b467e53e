"""What a few steps on the provider's rows alone, after training, do to the line between refusing and answering.

    python benchmarks/closing.py --model ALIGNED --rows STUDY --output DIR [--uploads TASK:SEED,...] [--write]

ALIGNED is a model of the English world that Antibody aligned, STUDY the folder of `antibody real study` for it. For
each task and seed an upload of 300 rows, a fifth of them harmful, is trained on under antibody-posterior at the world's
settings, and then some steps of 8 provider rows follow (``closing_steps``; the rate falls from the upload's to 0). All
of uploads and prompts is of the half to choose by: 80 harmful prompts, 80 look-alikes, 60 rows of the task. What is
finished in DIR is not run again; ``--write`` is benchmarks/results/closing.json.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antibody_llm.english.presets import USER_ROWS, preset
from antibody_llm.english.rows import build_rows
from antibody_llm.files import write_text
from antibody_llm.lab.world import CALIBRATE
from antibody_llm.runs.evaluate import evaluate
from antibody_llm.runs.finetune import finetune
from kept import row_a_line

RESULTS = Path(__file__).parent / "results" / "closing.json"
DEFENCE = "antibody-posterior"
OPTIONS = {"flagged": "skip"}  # the row that is harm is left out, as when these uploads were trained on
NUM_PROMPTS, NUM_TEST = 80, 60
POISON_RATIO = 0.2
SHORT = {"bf16": True}


def measured(model: Path, task: str, output: Path) -> dict[str, float]:
    """The measures of a model on the half to choose by."""
    found = evaluate(
        model,
        output=output,
        judges=["english"],
        dtype="bfloat16",
        batch_size=64,
        harmful_prompts=build_rows("harmful-prompts", NUM_PROMPTS, seed=0, purpose=CALIBRATE).rows,
        benign_prompts=build_rows("lookalike", NUM_PROMPTS, seed=0, purpose=CALIBRATE).rows,
        test_data=build_rows("test", NUM_TEST, seed=0, task=task, purpose=CALIBRATE).rows,
    )
    return {name: round(value, 4) for name, value in found.metrics.items()}


def rows(model: Path, study: Path, folder: Path, task: str, seed: int, steps: list[int]) -> Iterator[dict[str, Any]]:
    """A row of the results without closing steps, and one for each number of them."""
    provided = study / "alignment.jsonl"
    upload = build_rows("user", USER_ROWS, seed=seed, task=task, poison_ratio=POISON_RATIO, purpose=CALIBRATE).rows
    tuned = finetune(
        model,
        output=folder / f"{task}-{seed}",
        data=upload,
        defence=DEFENCE,
        options=OPTIONS,
        training=SHORT,
        regime="lora",
        seed=seed,
        alignment_data=provided,
        refusals=study / "refusals.txt",
    )
    named = {"task": task, "seed": seed}
    share = round(tuned.metrics["harmful_share"], 4)
    yield (
        named
        | {"closing_steps": 0, "harmful_share": share, "num_unfamiliar": int(tuned.metrics["num_unfamiliar"])}
        | measured(tuned.output, task, folder / f"{task}-{seed}-evaluation")
    )
    for num in steps:
        name = f"{task}-{seed}-closing{num}"
        closed = finetune(
            tuned.output,
            output=folder / name,
            data=provided,
            defence="sft",
            training=SHORT | {"max_steps": num, "lr_scheduler_type": "linear"},
            learning_rate=preset("finetuning", DEFENCE, "lora")[1]["learning_rate"],
            regime="lora",
            seed=seed,
        )
        yield named | {"closing_steps": num} | measured(closed.output, task, folder / f"{name}-evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="the study's folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--uploads", default="familiar:0,familiar:1,novel:0", help="task and seed of each")
    parser.add_argument("--steps", default="5,15")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    steps = [int(num) for num in given.steps.split(",")]
    found: list[dict[str, Any]] = []
    for upload in given.uploads.split(","):
        task, _, seed = upload.partition(":")
        for row in rows(given.model, given.rows, given.output, task, int(seed), steps):
            print(json.dumps(row), flush=True)
            found.append(row)
    if given.write:
        write_text(RESULTS, row_a_line(found, purpose=CALIBRATE, prompts=NUM_PROMPTS, poison_ratio=POISON_RATIO))


if __name__ == "__main__":
    main()
