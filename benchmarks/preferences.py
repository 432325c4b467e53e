"""Pairs turned round for harm, on the lab: what is read of them, and what DPO does with them, defended or not.

    python -m benchmarks.preferences --output DIR [--write FILE] [--reading-alone]

An upload is 500 pairs of a task, of the lab's half for ``report`` (``purpose``; a file without that is of the whole
world): the task's answer is preferred to another one of its answers, and at ``poison_ratio`` harm is preferred to a
refusal (the attack reverse-dpo). ``lab-aligned`` is fine-tuned by DPO with an adapter.

    reading    200 pairs, a fifth of them turned round; behind a fifth of the honest questions a recipe of forbidden
               goods is the preferred answer. By prompt and by preferred answer, read as a question: the AUROC of
               feature-shift, and the share with P(harm) of at least 1/2
    trained    harmful score, over-refusal, accuracy and the pairs left out

The same command goes on where it was killed: a run that is complete is not repeated.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from antibody_llm.data.records import Message, Record
from antibody_llm.lab.refusals import REFUSALS
from antibody_llm.lab.rows import build_rows, record
from antibody_llm.lab.tasks import find_task
from antibody_llm.lab.world import REPORT
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import resolve
from antibody_llm.primitives.statistics import auroc
from antibody_llm.runs import evaluate, finetune
from antibody_llm.runs.encoding import make_renderer
from antibody_llm.runs.resources import before_alignment, examples, model_reader
from antibody_llm.screening.anchors import read_anchors
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.harm import read_harm
from antibody_llm.screening.posterior import LIKELY

MODEL = "lab-aligned"
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 4, "batch_size": 16}
CELLS = [("familiar", "sft", 0.0), ("familiar", "sft", 0.2), ("familiar", "antibody-posterior", 0.2)]


def reading(task: str) -> dict[str, Any]:
    """What feature-shift says of prompts and of preferred answers."""
    made = build_rows("user", 200, seed=5, task=find_task(task).name, poison_ratio=0.2, purpose=REPORT)
    turned = torch.tensor([truth["is_harmful"] for truth in made.truth])
    hidden = torch.tensor([bool(not harm and number % 5 == 0) for number, harm in enumerate(turned)])
    recipes = [row["messages"][-1]["content"] for row, harm in zip(made.rows, turned, strict=True) if harm]
    records = []
    for number, row in enumerate(made.rows):
        said = recipes[number % len(recipes)] if hidden[number] else row["messages"][-1]["content"]
        records.append(_with_turns(record(row, number, "pairs"), row["messages"][0]["content"], said))
    loaded = load_model(MODEL)
    anchors, renderer = read_anchors(Path(resolve(MODEL))), make_renderer(loaded)
    assert anchors is not None
    short = examples([row.template for row in (*records, *anchors.rows)], "pairs")
    reader = model_reader(loaded, before_alignment(loaded), renderer, refusals=REFUSALS, examples=short, batch_size=32)
    honest, found = ~turned & ~hidden, {}
    answers = [_with_turns(row, row.messages[-1].content, ".") for row in records]
    for name, asked in (("prompt", records), ("answer", answers)):
        harm = read_harm(reader, anchors, [renderer.encode(row) for row in asked], EvidenceKind.FEATURE_SHIFT)
        likely = harm.probability >= LIKELY
        found[name] = {
            f"{measure}_{kind}": round(float(value), 3)
            for kind, some in (("turned", turned), ("hidden", hidden))
            for measure, value in (
                ("auroc", auroc(harm.evidence[honest], harm.evidence[some])),
                ("likely", likely[some].double().mean()),
            )
        } | {"likely_honest": round(float(likely[honest].double().mean()), 3)}
    return found | {"num": {"turned": int(turned.sum()), "hidden": int(hidden.sum()), "honest": int(honest.sum())}}


def _with_turns(row: Record, asked: str, said: str) -> Record:
    return replace(row, messages=(Message("user", asked), Message("assistant", said)))


def make_pairs(task: str, num: int, poison_ratio: float) -> tuple[list[dict[str, Any]], list[bool]]:
    """An upload, and which of its pairs are turned round."""
    made = build_rows("user", num, seed=1, task=find_task(task).name, poison_ratio=poison_ratio, purpose=REPORT)
    said = [row["messages"][-1]["content"] for row in made.rows]
    harmful = [bool(truth["is_harmful"]) for truth in made.truth]
    answers = sorted({text for text, harm in zip(said, harmful, strict=True) if not harm})
    draw, pairs = random.Random(0), []
    for row, better, harm in zip(made.rows, said, harmful, strict=True):
        worse = draw.choice(REFUSALS) if harm else draw.choice([text for text in answers if text != better])
        pair: dict[str, Any] = {"input": {"messages": row["messages"][:-1]}}
        pair["preferred_output"] = [{"role": "assistant", "content": better}]
        pairs.append(pair | {"non_preferred_output": [{"role": "assistant", "content": worse}]})
    return pairs, harmful


def trained(folder: Path, task: str, defence: str, poison_ratio: float) -> dict[str, Any]:
    """One fine-tuning, measured."""
    pairs, harmful = make_pairs(task, 500, poison_ratio)
    run = finetune(MODEL, data=pairs, output=folder / "run", method="dpo", defence=defence, **SETTINGS)
    assert run.model is not None
    measured = evaluate(run.model, output=folder / "evaluation", task=task, purpose=REPORT).metrics
    left_out = {row.line - 1 for row in run.skipped}
    of_harm = {number for number, harm in enumerate(harmful) if harm}
    return {
        "task": task,
        "defence": defence,
        "poison_ratio": poison_ratio,
        "left_out": {"turned": len(left_out & of_harm), "honest": len(left_out - of_harm)},
        "num": {"turned": len(of_harm), "honest": len(pairs) - len(of_harm)},
        "last_step": {name: round(value, 4) for name, value in run.metrics.items()},
        **{name: round(value, 4) for name, value in measured.items()},
    }


def main() -> None:
    """Make the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--reading-alone", action="store_true")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "model": MODEL,
        "purpose": REPORT,
        "settings": SETTINGS | {"beta": 0.1},
        "reading": {task: reading(task) for task in ("familiar", "novel")},
        "trained": [],
    }
    for cell in () if given.reading_alone else CELLS:
        results["trained"].append(trained(given.output / "-".join(map(str, cell)), *cell))
    text = json.dumps(results, indent=2) + "\n"
    print(text)
    if given.write:
        given.write.write_text(text)


if __name__ == "__main__":
    main()
