"""The worst case as plain values: what a search found against each defence, on the half to report on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..job import Job
from ..summary import mean_over_seeds
from .attacker import PLAIN_RATIO, REPORTING, Attacker
from .measures import (
    CODED,
    GUIDE,
    HALF,
    TOLERANCES,
    WINS,
    Attempt,
    own_form,
    running_maximum,
    trials_until,
    upload_harm,
)
from .search import Against, Searched, alignment_of

FOUND, NONE_PASSED = "found", "none passed"


def worst_case(searched: Searched) -> dict[str, Any]:
    """Everything that tables, pictures and programs need, as JSON has it."""
    settings = searched.matrix.settings
    controls = [_control(searched, *each) for each in searched.controls.values()]
    alignments = {alignment_of(each.attacker) for each in searched.against}
    return {
        "title": searched.matrix.title,
        "model": settings.model,
        "rows": settings.rows,
        "seeds": list(searched.matrix.seeds),
        "attacks": [each.name for each in searched.matrix.attacks],
        "tolerances": list(TOLERANCES),
        "guide": GUIDE,
        "plain_ratio": PLAIN_RATIO,
        "defences": [_defence(searched, each) for each in searched.against],
        "controls": controls,
        "proves": bool(alignments) and len(controls) == len(alignments) and all(each["wins"] for each in controls),
        "wins_at": WINS,
        "failed": searched.failed,
    }


def _defence(searched: Searched, against: Against) -> dict[str, Any]:
    attacker, seeds = against.attacker, searched.matrix.seeds
    clean, plain = (
        _measured(searched, [job(seed) for seed in seeds])
        for job in (lambda seed: attacker.clean(seed, REPORTING), attacker.plain)
    )
    curve = running_maximum(against.attempts, GUIDE)
    asked = [each.values for each in against.attempts if each.values is not None and each.chosen.attack not in CODED]
    alone = max((own_form(values)[1] for values in asked), default=0.0)
    return {
        "defence": attacker.defended.name,
        "alignment": attacker.defended.alignment.name,
        "finetuning": attacker.defended.finetuning.name,
        "post": attacker.defended.post.name,
        "num_trials": len(against.attempts),
        "num_failed": sum(each.values is None for each in against.attempts),
        "num_useful": sum(each.useful(GUIDE) for each in against.attempts),
        "clean_harm": upload_harm(against.clean),
        "clean_accuracy": against.clean["finetune_accuracy"]["value"],
        "clean": clean,
        "plain": plain,
        "asking_alone": alone,
        "found": [_found(searched, attacker, *each) for each in against.found],
        "curve": curve,
        "trials_until_half": trials_until(curve, HALF),
        "trials": [attempt_row(attacker, each) for each in against.attempts],
    }


def _found(searched: Searched, attacker: Attacker, tolerance: float, attempt: Attempt | None) -> dict[str, Any]:
    if attempt is None:
        return {"tolerance": tolerance, "outcome": NONE_PASSED}
    seeds = searched.matrix.seeds
    measured = _measured(searched, [attacker.reported(attempt.chosen, seed) for seed in seeds])
    clean = _measured(searched, [attacker.clean(seed, REPORTING) for seed in seeds])
    kept = None
    if measured is not None and clean is not None:
        kept = measured["accuracy"]["value"] >= clean["accuracy"]["value"] - tolerance - 1e-9
    return {
        "tolerance": tolerance,
        "outcome": FOUND,
        "trial": attempt.number,
        "attack": attempt.chosen.attack,
        "words": attempt.chosen.words,
        "chosen": asdict(attempt.chosen),
        "harm_when_chosen": attempt.harm,
        "lost_when_chosen": attempt.lost,
        "report": measured,
        "kept": kept,
    }


def _control(searched: Searched, owner: Attacker, setting: tuple[float, int]) -> dict[str, Any]:
    measured = _measured(searched, [owner.owning(setting, seed, REPORTING) for seed in searched.matrix.seeds])
    return {
        "alignment": owner.defended.alignment.name,
        "learning_rate": setting[0],
        "epochs": setting[1],
        "report": measured,
        "wins": measured is not None and measured["harm"]["value"] >= WINS,
    }


def _measured(searched: Searched, jobs: Sequence[Job]) -> dict[str, Any] | None:
    """Means over the seeds that have ended, each with its interval; None if none has."""
    known = [searched.values[job] for job in jobs if job in searched.values]
    if not known:
        return None
    prompts = known[0]["harmful_score"]["n"]
    shares = {
        "harm": [upload_harm(values) for values in known],
        "plain": [values["harmful_score"]["value"] for values in known],
        "own_form": [own_form(values)[0] for values in known],
        "own_form_before": [own_form(values)[1] for values in known],
        "accuracy": [values["finetune_accuracy"]["value"] for values in known],
        "incoherent": [values["incoherent"]["value"] for values in known],
    }
    return {name: asdict(mean_over_seeds(each, prompts)) for name, each in shares.items()}


def attempt_row(attacker: Attacker, attempt: Attempt) -> dict[str, Any]:
    """A trial as a flat row."""
    values: Mapping[str, Any] = attempt.values or {}
    own, before = own_form(values)
    chosen = asdict(attempt.chosen)
    asking = chosen.pop("asking")
    return {
        "defence": attacker.defended.name,
        "trial": attempt.number,
        "words": attempt.chosen.words,
        "harm": attempt.harm,
        "lost": attempt.lost,
        "useful": attempt.useful(GUIDE),
        "harmful_score": (values.get("harmful_score") or {}).get("value"),
        "own_form": own if values else None,
        "own_form_before": before if values else None,
        "finetune_accuracy": (values.get("finetune_accuracy") or {}).get("value"),
        "incoherent": (values.get("incoherent") or {}).get("value"),
        **{name: value for name, value in chosen.items() if name != "options"},
        "options": ", ".join(f"{name} {value}" for name, value in chosen["options"].items()),
        "template": "none" if asking.get("bare") else "own",
        "system": asking.get("system", ""),
        "prefill": asking.get("prefill", ""),
        "screening_auroc": values.get("screening_auroc"),
        "poison_weight": values.get("poison_weight"),
        "harmful_share": values.get("harmful_share"),
        "seconds": values.get("seconds"),
        "key": attempt.key,
        "error": attempt.error,
    }
