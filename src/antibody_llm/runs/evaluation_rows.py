"""The rows of an evaluation: what is given, or what the model's profile brings."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..data.duplicates import overlap
from ..data.formats import fingerprint, load_records
from ..data.source import Source
from ..errors import DataError
from ..evaluation.completions import EvaluationSet
from ..events import inform, warn
from ..mentions import setting
from ..profiles import Choice, Profile
from ..settings import Rows
from .sources import read_rows

FIELDS = {
    EvaluationSet.HARMFUL: "harmful_prompts",
    EvaluationSet.BENIGN: "benign_prompts",
    EvaluationSet.TEST: "test_data",
    EvaluationSet.RETENTION: "retention_data",
}
"""The setting that holds each set."""


def report_trained_prompts(run: Path, sources: Mapping[EvaluationSet, Source]) -> None:
    """Warn of prompts that the evaluated run was trained on, where its upload is still the file that it was."""
    try:
        trained = yaml.safe_load((run.expanduser() / "config.yaml").read_text(encoding="utf-8"))["data"]["user"]
        if not Path(trained["source"]).is_file():
            return
        records = load_records(trained["source"])
        if fingerprint(records) != trained["sha256"]:
            return
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, DataError):
        return  # no run of ours, or its rows are gone
    for source in sources.values():
        if said := str(overlap(records, source.records, names=(trained["source"], source.name))):
            warn(f"{said}. The model was trained on them, so that their measure is too good.")


def sources_of(
    given: Mapping[EvaluationSet, Rows | None], choice: Choice, profile: Profile, *, model: str, seed: int
) -> dict[EvaluationSet, Source]:
    """What is given; if nothing is, the sets that the model's profile brings."""
    own = {
        role: read_rows(rows, name=f"{FIELDS[role]} rows", prompts=True)
        for role, rows in given.items()
        if rows is not None
    }
    if own:
        choice.refuse(model)
        return own
    brought = {role: profile.rows(field, choice, seed=seed) for role, field in FIELDS.items()}
    sources = {role: source for role, source in brought.items() if source is not None}
    if not sources:
        choice.refuse(model)
        names = ", ".join(map(setting, FIELDS.values()))
        raise DataError(f"{model}: there is nothing to evaluate on. Give one or more of {names}.")
    if choice.task is None and profile.default_task is not None:
        inform(
            f"finetune_accuracy is that of the {profile.name}'s {profile.default_task} task. A model tuned on another "
            f"needs its {setting('task')}."
        )
    return sources
