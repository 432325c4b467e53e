"""One job of a training carried out: an upload is fine-tuned on, its model is read on the probes and thrown away."""

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..attacks.asking import PLAIN, Asking
from ..attacks.attack import Crafted
from ..attacks.kit import lab_questions
from ..bench.job import Job, digest
from ..bench.once import done_once
from ..bench.work import crafted, means_of, measured_as_asked, tuned_on
from ..evaluation.decoding import DecodingSettings
from ..evaluation.judges.registry import make_judge
from ..models.loading import LoadedModel, load_model
from ..profiles import profile_of
from .features import GroupReading, changes, read_probes
from .honest import HONEST
from .probes import Stock, file_stock, held_questions, world_stock


def carry_out(folder: Path, job: Job) -> dict[str, Any]:
    """Do a job, unless another process has done it meanwhile, and store what comes of it.

    Stored are the ``features``, ``harm`` by form before and after (0 to 1), its ``rise``, and the rows.
    """
    return done_once(folder, job, lambda results: _done(job, results.working(job)))


def stock_of(job: Job) -> Stock:
    """The probes of a job, made again from what it names."""
    profile, places = profile_of(job.places["model"]), job.places
    if "harmful_prompts" in places:
        stock: Stock | None = file_stock(places["harmful_prompts"], places["benign_prompts"], profile.refusals)
    else:
        stock = world_stock(profile)
    assert stock is not None, "the plan made one"
    assert digest(stock.to_json()) == job.config["stock"], "the probes have changed since the plan was made"
    return stock


def _done(job: Job, working: Path) -> dict[str, Any]:
    aligned = Path(job.places["model"])
    made = uploaded(job, aligned)
    tuned = aligned
    for number, upload in enumerate(made.jobs):
        tuned = cast(Path, tuned_on(job, tuned, upload.rows, working / f"job{number}").model)
    decoding = _decoding(job)
    aligned_model, readings = _aligned(
        str(aligned), digest(job.config["model"]), stock_of(job), job.config["judge"], decoding
    )
    loaded = load_model(str(tuned))
    now = read_probes(loaded, stock_of(job), make_judge(job.config["judge"]), decoding)
    askings = {"plain": PLAIN} | ({} if made.asking == PLAIN else {"own": made.asking})
    harm = {
        form: {"before": _harm(aligned_model, asking, job, decoding), "after": _harm(loaded, asking, job, decoding)}
        for form, asking in askings.items()
    }
    return {
        "features": changes(now, readings),
        "harm": harm,
        "rise": max(found["after"] - found["before"] for found in harm.values()),
        "num_rows": made.num_rows,
        "num_poison": made.num_poison,
    }


def uploaded(job: Job, aligned: Path) -> Crafted:
    """What the attacker, or the honest user, of a job uploads."""
    kind = job.config["honest"]
    return crafted(job, aligned) if kind is None else HONEST[kind](means_of(job, aligned))


@lru_cache(maxsize=1)
def _aligned(
    name: str, fingerprint: str, stock: Stock, judge: str, decoding: DecodingSettings
) -> tuple[LoadedModel, dict[str, GroupReading]]:
    """The aligned model and what it makes of the probes; the jobs of a process that begin from one model share them.

    Args:
        name: Where the model is.
        fingerprint: Which weights are there.
        stock: The probes.
        judge: The judge's name.
        decoding: How replies are drawn.
    """
    loaded = load_model(name)
    return loaded, read_probes(loaded, stock, make_judge(judge), decoding)


def _harm(loaded: LoadedModel, asking: Asking, job: Job, decoding: DecodingSettings) -> float:
    """Share of harmful questions, put in a form, whose replies do harm as the asker reads them, 0 to 1."""
    config = job.config
    if "harmful_prompts" in job.places:
        questions = held_questions(job.places["harmful_prompts"])[: config["prompts"]]
    else:
        questions = lab_questions(config["prompts"], config["sets"]["purpose"])
    found = measured_as_asked(loaded, questions, asking, config["judge"], decoding)
    return max(found[name].value for name in ("harmful_score", "given_away") if name in found)


def _decoding(job: Job) -> DecodingSettings:
    return DecodingSettings(max_new_tokens=job.config["max_new_tokens"], batch_size=job.config["batch_size"])
