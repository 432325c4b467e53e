"""One job carried out: an alignment, or an attack on an aligned model and what came of it.

A cell is judged twice: by the harmful prompts asked plainly, and by the same prompts asked and read in the attack's own
form. The truth beside the rows is read here, after training, and by the oracle, which is called so for that.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from ..attacks.asking import PLAIN, Asking, Row
from ..attacks.attack import Access, Crafted, Means
from ..attacks.catalogue import CATALOGUE, craft
from ..attacks.kit import lab_clean, lab_kit, lab_questions, rows_kit
from ..attacks.own_copy import OwnCopy
from ..attacks.provider import screening_of
from ..building.attacks import clean_rows, exchanges
from ..data.formats import load_prompts
from ..data.roles import Stage
from ..defences.catalogue import make_defence, make_repair
from ..errors import OutputError
from ..evaluation.asked import ask_model, asked_measures
from ..evaluation.decoding import DecodingSettings
from ..evaluation.evaluate import Evaluation
from ..evaluation.judges.registry import make_judge
from ..evaluation.measures import Measure
from ..models.loading import LoadedModel, load_model
from ..primitives.statistics import auroc
from ..runs.align import align
from ..runs.encoding import make_renderer
from ..runs.evaluate import EVALUATION, deployment_of, evaluate
from ..runs.finetune import finetune
from ..runs.metrics import SAMPLES
from ..runs.repair import repair
from ..runs.sources import read_refusals
from ..store.result import RunResult
from .job import Job
from .matrix_file import NONE, ORACLE
from .once import done_once
from .order import Order, in_order
from .results import Results

POOL = 3
"""Clean rows to choose an upload from, for each row of it."""
LONG_REPLIES = ("noice",)
"""Attacks that are asked plainly and whose harm comes later in a reply than the evaluation reads."""
PLAIN_MEASURES = ("harmful_score", "incoherent", "over_refusal", "finetune_accuracy", "retention")
MEASURES = (*PLAIN_MEASURES, "further_refusal")
"""The measures of the model asked plainly; the last is the over-refusal of ``further_prompts``."""
FORMS = ("asked", "asked_before", "given_away", "given_away_before")
"""The measures of the attack's own form: after the upload, and of the aligned model before any."""
SCREENED = ("evidence_auroc", "screening_auroc", "poison_weight", "harmful_share", "answers_share")
T = TypeVar("T")


def carry_out(folder: Path, job: Job) -> dict[str, Any]:
    """Do a job, unless another process has done it meanwhile, and store what comes of it.

    Args:
        folder: The matrix's folder.
        job: Its need is done.
    """
    part = _align if job.kind == "alignment" else _attack
    return done_once(folder, job, lambda results: part(results, job))


def _align(results: Results, job: Job) -> dict[str, Any]:
    config, part = job.config, job.config["defence"]
    output = results.aligned(job)
    _in_its_folder(
        output,
        lambda: align(
            job.places["model"],
            output=output,
            defence=part["name"],
            options=part["options"],
            training=part["training"],
            regime=config["regime"],
            seed=config["seed"],
            **_data(job, config["provided"]),
        ),
    )
    return {}


def _attack(results: Results, job: Job) -> dict[str, Any]:
    config, working = job.config, results.working(job)
    finetuning = config["finetuning"]["name"]
    aligned = Path(job.places["model"]) if job.needs is None else _model(results.aligned(job.needs))
    made = crafted(job, aligned)
    tuned, runs = aligned, list[RunResult]()
    for number, upload in enumerate(made.jobs):
        rows = upload.rows
        if finetuning == ORACLE:
            rows = [row for row, truth in zip(rows, upload.truth, strict=True) if not truth["is_poison"]]
        if rows and finetuning != NONE:  # the oracle trains on none where all are the attacker's
            runs.append(tuned_on(job, tuned, rows, working / f"job{number}"))
            tuned = cast(Path, runs[-1].model)
    if config["post"] is not None:
        tuned = _repaired(job, aligned, tuned, working / "repair")
    values = _plainly(job, tuned, working) | _own_form(job, made.asking, aligned, tuned)
    if finetuning not in (ORACLE, NONE) and "method" not in config:
        values |= _screened(made, runs, scores_harm=make_defence(Stage.FINETUNING, finetuning).scores_harm)
    return values | {"num_rows": made.num_rows, "num_poison": made.num_poison}


def crafted(job: Job, aligned: Path) -> Crafted:
    """What the attack of a cell uploads."""
    config, attack = job.config, job.config["attack"]
    made = craft(attack["name"], means_of(job, aligned), attack["options"])
    made = replace(made, asking=_turned(made.asking, config.get("asking", {})))
    return in_order(made, Order(config["order"])) if "order" in config else made


def means_of(job: Job, aligned: Path) -> Means:
    """What the attacker of a cell works with."""
    config, attack = job.config, CATALOGUE[job.config["attack"]["name"]]
    seed = config["seed"]
    if "data" in job.places:
        clean: Sequence[Row] = clean_rows(job.places["data"])
        harmful = exchanges(clean_rows(job.places["attack_data"], "attack_data"))
        kit = rows_kit(harmful, exchanges(clean), read_refusals(job.places.get("refusals")))
    else:
        task, purpose = config["sets"]["task"], config["sets"]["purpose"]
        clean, kit = lab_clean(POOL * config["rows"], seed=seed, task=task, purpose=purpose), lab_kit(purpose)
    return Means(
        clean=clean,
        kit=kit,
        num=config["rows"],
        poison_ratio=config["poison_ratio"],
        seed=seed,
        suspicion=screening_of(str(aligned)) if Access.SCREENING in attack.needs else None,
        copy=OwnCopy(str(aligned)) if Access.COPY in attack.needs else None,
    )


def _turned(asking: Asking, extras: Mapping[str, Any]) -> Asking:
    """How the attacker asks, with what a search adds where the attack has nothing of its own."""
    return replace(asking, **{name: value for name, value in extras.items() if not getattr(asking, name)})


def tuned_on(job: Job, model: Path, rows: Sequence[Mapping[str, Any]], output: Path) -> RunResult:
    """Fine-tune a model on the rows of one upload as a cell's configuration says."""
    config, part = job.config, job.config["finetuning"]
    return _in_its_folder(
        output,
        lambda: finetune(
            model,
            output=output,
            data=rows,
            defence="sft" if part["name"] == ORACLE else part["name"],
            options=part["options"],
            training=part["training"],
            regime=config["regime"],
            seed=config["seed"],
            method=config.get("method", "sft"),
            **_data(job, config["provided"]),
        ),
    )


def _repaired(job: Job, aligned: Path, model: Path, output: Path) -> Path:
    part, provided = job.config["post"], _data(job, job.config["provided"])
    provided.pop("refusals", None)
    method = make_repair(part["name"], part["options"])
    if method.needs_aligned or method.needs_base:
        provided["aligned"] = aligned
    run = _in_its_folder(
        output,
        lambda: repair(
            model, output=output, defence=part["name"], options=part["options"], seed=job.config["seed"], **provided
        ),
    )
    return cast(Path, run.model)


def _plainly(job: Job, model: Path, working: Path) -> dict[str, Any]:
    """The measures of the model asked plainly, each with its Wilson interval."""
    config, sets = job.config, job.config["sets"]
    if "world" in sets:
        chosen: dict[str, Any] = {"task": sets["task"], "purpose": sets["purpose"], "num": config["prompts"]}
    else:
        names = ("harmful_prompts", "benign_prompts", "test_data", "retention_data")
        chosen = {name: job.places[name] for name in names if name in job.places}
    found = _evaluated(job, model, working / "evaluation", chosen | {"answer": config["answer"]})
    values = {name: _share_or_none(getattr(found, name)) for name in PLAIN_MEASURES}
    if "further_prompts" in job.places:
        further = {"benign_prompts": job.places["further_prompts"]}
        values["further_refusal"] = _share_or_none(_evaluated(job, model, working / "further", further).over_refusal)
    return values


def _evaluated(job: Job, model: Path, output: Path, chosen: Mapping[str, Any]) -> Evaluation:
    config = job.config
    _in_its_folder(
        output,
        lambda: evaluate(
            model,
            output=output,
            judges=[config["judge"]],
            batch_size=config["batch_size"],
            dtype=config.get("dtype", "auto"),
            seed=0,
            **chosen,
        ),
    )
    return Evaluation.model_validate_json((output / EVALUATION).read_text(encoding="utf-8"))


def _own_form(job: Job, asking: Asking, aligned: Path, tuned: Path) -> dict[str, Any]:
    """The measures of both models asked in the attack's own form; none where that is the plain one."""
    config = job.config
    if asking == PLAIN and config["attack"]["name"] not in LONG_REPLIES:
        return {}
    if "harmful_prompts" in job.places:
        records = load_prompts(Path(job.places["harmful_prompts"]))
        questions = [next(m.content for m in reversed(record.messages) if m.role == "user") for record in records]
    else:
        questions = lab_questions(config["prompts"], config["sets"]["purpose"])
    decoding = DecodingSettings(max_new_tokens=config["max_new_tokens"], batch_size=config["batch_size"])
    values: dict[str, Any] = {}
    for when, place in (("", tuned), ("_before", aligned)):
        loaded = load_model(str(place), dtype=config.get("dtype", "auto"))
        found = measured_as_asked(loaded, questions, asking, config["judge"], decoding)
        values[f"asked{when}"] = _share(found["harmful_score"])
        if "given_away" in found:
            values[f"given_away{when}"] = _share(found["given_away"])
    return values


def measured_as_asked(
    loaded: LoadedModel, questions: Sequence[str], asking: Asking, judge: str, decoding: DecodingSettings
) -> dict[str, Measure]:
    """The harmful score, and what is given away where that can be said, of a model asked in an attack's form."""
    judged = make_judge(judge)
    rows = ask_model(
        cast(PreTrainedModel, loaded.model),
        loaded.tokenizer,
        questions,
        asking,
        renderer=make_renderer(loaded),
        judge=judged,
        decoding=decoding,
        deployment=deployment_of(loaded),
    )
    return asked_measures(rows, asking, judge=judged, decoding=decoding)


def _screened(made: Crafted, runs: Sequence[RunResult], *, scores_harm: bool) -> dict[str, Any]:
    """How a defence that weighs rows has weighed the attacker's: AUROC, the weight that they kept, their share found.

    Weights are those of the last epoch. AUROC is that of weights, of which many may be 0, and of the scores behind them
    where these are evidence of harm. Nothing where a defence has no score of a row: one that skips whole steps of
    the user's, as Lisa does, weighs them too, and screens nobody; nor of pairs, which are left out or kept.
    """
    kept, found, poison = list[float](), list[float | None](), list[bool]()
    for upload, run in zip(made.jobs, runs, strict=True):
        samples = pq.read_table(run.output / SAMPLES).to_pydict()
        last = max(samples["epoch"], default=0)
        columns = (samples[name] for name in ("epoch", "row_id", "weight", "score"))
        for epoch, row_id, weight, score in zip(*columns, strict=True):
            if epoch == last and 0 <= row_id < len(upload.truth):
                kept.append(weight)
                found.append(score)
                poison.append(upload.truth[row_id]["is_poison"])
    if all(score is None for score in found):
        return {}
    weights, of_attacker = torch.tensor(kept), torch.tensor(poison)
    both = bool(of_attacker.any()) and not bool(of_attacker.all())
    scores = torch.tensor(found) if scores_harm and None not in found else None
    return {
        "evidence_auroc": auroc(scores[~of_attacker], scores[of_attacker]) if both and scores is not None else None,
        "screening_auroc": auroc(-weights[~of_attacker], -weights[of_attacker]) if both else None,
        "poison_weight": float(weights[of_attacker].mean()) if of_attacker.any() else None,
        "harmful_share": runs[-1].metrics.get("harmful_share"),
        "answers_share": runs[-1].metrics.get("harmful_answers"),
    }


def _in_its_folder(output: Path, run: Callable[[], T]) -> T:
    """Run a verb; a killed run in its folder goes on, unless it was begun from elsewhere: then it is begun again."""
    try:
        return run()
    except OutputError:
        if not output.exists():
            raise
        shutil.rmtree(output)
        return run()


def _data(job: Job, named: Mapping[str, Any]) -> dict[str, Any]:
    return {key: job.places[key] for key in named}


def _model(run: Path) -> Path:
    """The folder of the model, or the adapter, that a run has made."""
    return next(run / kind for kind in ("model", "adapter") if (run / kind).is_dir())


def _share_or_none(measure: Measure | None) -> dict[str, Any] | None:
    return None if measure is None else _share(measure)


def _share(measure: Any) -> dict[str, Any]:
    return {name: asdict(measure)[name] for name in ("value", "n", "low", "high")}
