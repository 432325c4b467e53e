"""One job of the grid carried out: a model measured as it is, attacked, or trained on a clean task."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from transformers import PreTrainedModel

from ..bench.job import Job
from ..bench.once import done_once
from ..evaluation.decoding import DecodingSettings
from ..evaluation.evaluate import Evaluation
from ..evaluation.judges.registry import make_judge
from ..models.loading import load_model
from ..profiles import Choice, profile_of
from ..runs.encoding import make_renderer
from ..runs.evaluate import EVALUATION, evaluate
from ..runs.finetune import finetune
from ..runs.sources import read_rows
from .plan import BATCH
from .rows import Row, attack_rows, harmful_sets, reference_rows, task_rows
from .watch import Measure, Watch, accuracy, harm, likelihoods

STABLE = ("harmful_score", "incoherent", "over_refusal", "finetune_accuracy", "retention")
"""The measures of a model as it is."""
REFERENCES = 300
"""Rows of the unrelated skills whose perplexity is taken."""
EVALUATED = ("harmful_prompts", "benign_prompts", "test_data", "retention_data")
T = TypeVar("T")


def carry_out(folder: Path, job: Job) -> dict[str, Any]:
    """Do a job, unless another process has done it meanwhile, and store what comes of it."""
    part = PARTS[job.config["immunization"]]
    return done_once(folder, job, lambda results: part(job, results.working(job)))


def _start(job: Job, working: Path) -> dict[str, Any]:
    config, sets = job.config, job.config["sets"]
    if "world" in sets:
        chosen: dict[str, Any] = {"task": config["task"], "purpose": sets["purpose"]}
    else:
        chosen = {name: job.places[name] for name in EVALUATED if name in job.places}
    _afresh(
        working / "evaluation",
        lambda output: evaluate(
            job.places["model"],
            output=output,
            judges=[config["judge"]],
            answer=config["answer"],
            max_new_tokens=config["max_new_tokens"],
            batch_size=BATCH,
            seed=0,
            **chosen,
        ),
    )
    found = Evaluation.model_validate_json((working / "evaluation" / EVALUATION).read_text(encoding="utf-8"))
    measured = {name: getattr(found, name) for name in STABLE}
    shown = {
        name: {key: asdict(measure)[key] for key in ("value", "n", "low", "high")}
        for name, measure in measured.items()
        if measure is not None
    }
    loaded = load_model(job.places["model"])
    model = cast(PreTrainedModel, loaded.model)
    return {
        "measures": shown,
        "perplexity": _perplexity(job, model, loaded),
        "point": {"step": 0, **_harm(job)(model, loaded.tokenizer)},
    }


def _perplexity(job: Job, model: PreTrainedModel, loaded: Any) -> float | None:
    """The perplexity of the unrelated skills' answers; None without such rows."""
    if "world" in job.config["sets"]:
        source = profile_of(job.places["model"]).rows(
            "retention_data", Choice(num=REFERENCES, purpose=job.config["sets"]["purpose"]), seed=0
        )
    elif "retention_data" in job.places:
        source = read_rows(job.places["retention_data"], name="retention_data rows")
    else:
        return None
    assert source is not None, "a world has rows of every kind"
    found = likelihoods(model, loaded.tokenizer, source.records[:REFERENCES], make_renderer(loaded))
    return math.exp(float(found.mean()))


def _attack(job: Job, working: Path) -> dict[str, Any]:
    config = job.config
    rows = attack_rows(config["sets"], job.places, config["rows"], config["seed"])
    return {"points": _watched(job, rows, _harm(job), working)}


def _task(job: Job, working: Path) -> dict[str, Any]:
    config = job.config
    rows = task_rows(config["sets"], job.places, config["task"], config["seed"])
    tests = reference_rows(config["sets"], job.places, config["task"])
    return {"points": _watched(job, rows, accuracy(tests, config["answer"], _decoding(job)), working)}


PARTS: Mapping[str, Callable[[Job, Path], dict[str, Any]]] = {"start": _start, "attack": _attack, "task": _task}


def _watched(job: Job, rows: Sequence[Row], measure: Measure, working: Path) -> list[dict[str, Any]]:
    """Plain SFT on the rows, measured at every checkpoint; the model that comes of it is not kept."""
    config, watch = job.config, Watch(job.config["checkpoints"], measure)
    _afresh(
        working / "run",
        lambda output: finetune(
            job.places["model"],
            output=output,
            data=list(rows),
            defence="sft",
            training=config["training"],
            regime=config["regime"],
            seed=config["seed"],
            callbacks=[watch],
        ),
    )
    return watch.points


def _afresh(output: Path, run: Callable[[Path], T]) -> T:
    """Run a verb in an empty folder: what a killed job has left there lacks its measures."""
    shutil.rmtree(output, ignore_errors=True)
    return run(output)


def _harm(job: Job) -> Measure:
    config = job.config
    sets = harmful_sets(config["sets"], job.places, config["prompts"])
    return harm(sets, make_judge(config["judge"]), _decoding(job))


def _decoding(job: Job) -> DecodingSettings:
    return DecodingSettings(max_new_tokens=job.config["max_new_tokens"], batch_size=BATCH)
