"""Measure a model: harmful score, over-refusal, accuracy on the user's task, retention."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from ..data.duplicates import overlap
from ..data.formats import fingerprint, load_records
from ..data.source import Source
from ..errors import ConfigError, DataError, ModelError, OutputError
from ..evaluation.completions import EvaluationSet
from ..evaluation.decoding import DecodingSettings
from ..evaluation.evaluate import Evaluation, evaluate_model, rejudge
from ..evaluation.judges.protocol import Judge
from ..evaluation.judges.registry import make_judge
from ..events import Measured, emit, inform, warn, warned
from ..files import whole, write_text
from ..mentions import setting
from ..models.deployment import Deployment
from ..models.loading import LoadedModel, load_model
from ..models.names import read_provenance, resolve
from ..paths import OUTPUT, checked_path
from ..profiles import Choice, Profile, profile_of
from ..settings import EvaluateSettings, Rows, written_out
from ..store.digest import file_digest
from ..store.environment import environment
from ..store.folder import RunFolder, State, open_run
from ..store.naming import described_model, model_name
from ..store.result import RunResult, stored_result
from ..text import quoted
from .encoding import make_renderer, report_forgeries
from .sources import read_rows
from .trainer_config import check_seed
from .verb import verb

EVALUATION = "evaluation.json"
COMPLETIONS = "completions.parquet"

FIELDS = {
    EvaluationSet.HARMFUL: "harmful_prompts",
    EvaluationSet.BENIGN: "benign_prompts",
    EvaluationSet.TEST: "test_data",
    EvaluationSet.RETENTION: "retention_data",
}
"""The setting that holds each set."""


@verb(EvaluateSettings)
def evaluate(settings: EvaluateSettings) -> RunResult:
    """Measure a model on whatever data is given; a model's profile may bring sets by default.

    Args:
        settings: What to measure, on what, and how.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    started = time.monotonic()
    check_seed(settings.seed)
    return _judged_again(settings, started) if settings.rejudge is not None else _measured(settings, started)


def _measured(settings: EvaluateSettings, started: float) -> RunResult:
    """Generate completions, judge and measure them."""
    name = model_name(cast(str | Path, settings.model))
    adapter = None if settings.adapter is None else model_name(settings.adapter)
    profile = profile_of(name)
    given: dict[EvaluationSet, Rows | None] = {role: getattr(settings, field) for role, field in FIELDS.items()}
    sources = _sources(given, Choice.of(settings), profile, model=str(settings.model), seed=settings.seed)
    answer = settings.answer
    if answer is None:
        answer = profile.answer(settings.task) if settings.test_data is None else Profile().answer(None)
    decoding = DecodingSettings(
        max_new_tokens=_first(settings.max_new_tokens, profile.max_new_tokens, DecodingSettings.max_new_tokens),
        batch_size=settings.batch_size,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    named = profile.judges if settings.judges is None else settings.judges
    judges = _judges(named)
    if not judges and (EvaluationSet.HARMFUL in sources or EvaluationSet.BENIGN in sources):
        raise ConfigError(
            f"harmful and benign prompts need a judge. Name one with {setting('judges')}: keywords is a weak baseline "
            "that only looks for refusal phrases."
        )
    config: dict[str, Any] = {
        "verb": "evaluate",
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "data": {str(role): source.described() for role, source in sources.items()},
        "judges": _names(named),
        "answer": answer,
        "retention_answer": settings.retention_answer,
        "decoding": dataclasses.asdict(decoding),
    }
    config = written_out(settings, config)
    folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=(name, adapter, *given.values()))
    if folder.state is State.COMPLETE:
        return _stored(folder)
    loaded = load_model(name, adapter=adapter)
    _report_trained_prompts(Path(str(settings.model)), sources)
    renderer = make_renderer(loaded)
    for source in sources.values():
        report_forgeries(source.records, renderer, "The model is given them as text.")

    def measure() -> Evaluation:
        return evaluate_model(
            loaded.model,  # type: ignore[arg-type]
            loaded.tokenizer,
            renderer=renderer,
            deployment=deployment_of(loaded),
            judges=judges,
            decoding=decoding,
            **{str(role): source.records for role, source in sources.items()},  # type: ignore[arg-type]
            answer=answer,
            retention_answer=settings.retention_answer,
            completions_path=folder.path / COMPLETIONS,
        )

    return _carried_out(folder, settings.seed, measure, started)


def _judged_again(settings: EvaluateSettings, started: float) -> RunResult:
    """Judge the completions of a finished evaluation, without a model; they are copied, and the copy has the verdicts.

    Raises:
        DataError: the folder holds no completions.
        OutputError: the output is inside that folder.
        ConfigError: no judge is named.
    """
    source = checked_path(cast(str | Path, settings.rejudge), setting("rejudge")).expanduser()
    if source.is_dir():
        if source.resolve() in Path(settings.output).resolve().parents:
            raise OutputError(f"{OUTPUT} is inside the evaluation that is to be judged again. Choose another folder.")
        source = source / COMPLETIONS
    if not source.is_file():
        raise DataError(
            f"{source}: there are no stored completions. Name the folder of a finished evaluation, or its "
            f"{COMPLETIONS}, as {setting('rejudge')}.",
            field="rejudge",
        )
    named = settings.judges or ()
    judges = _judges(named)
    if not judges:
        raise ConfigError(f"no judge is named. Name one or more with {setting('judges')}.")
    config: dict[str, Any] = {
        "verb": "evaluate",
        "rejudge": {"source": str(source), "sha256": file_digest(source)},
        "judges": _names(named),
    }
    folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=(source,))
    if folder.state is State.COMPLETE:
        return _stored(folder)

    def measure() -> Evaluation:
        with whole(folder.path / COMPLETIONS) as temporary:
            shutil.copyfile(source, temporary)
        return rejudge(folder.path / COMPLETIONS, judges)

    return _carried_out(folder, settings.seed, measure, started)


def _first(*numbers: int | None) -> int:
    """The first that is given; 0 is given, and refused by whoever takes it."""
    return next(number for number in numbers if number is not None)


def _judges(given: Sequence[str | Judge]) -> list[Judge]:
    """The judges, those that are named looked up.

    Raises:
        ConfigError: no judge has that name, or an object is none.
    """
    for each in given:
        if not isinstance(each, str) and (isinstance(each, type) or not callable(getattr(each, "judge", None))):
            raise ConfigError(f"{setting('judges')} holds {quoted(each)}: a judge is a name, or an object of your own.")
    return [make_judge(judge) if isinstance(judge, str) else judge for judge in given]


def _names(given: Sequence[str | Judge]) -> list[str]:
    return [judge if isinstance(judge, str) else judge.name for judge in given]


def _stored(folder: RunFolder) -> RunResult:
    inform(f"{folder.path}: already complete; this is its stored result.")
    return stored_result(folder.path)


def _carried_out(folder: RunFolder, seed: int, measure: Callable[[], Evaluation], started: float) -> RunResult:
    """Measure inside the run's folder, and complete it."""
    folder.begin(environment(seed))
    try:
        measured = measure()
        write_text(folder.path / EVALUATION, measured.model_dump_json(indent=2) + "\n")
        result = RunResult(
            output=folder.final,
            model=None,
            metrics=measured_values(measured),
            seconds=time.monotonic() - started,
            num_rows=len(measured.completions),
            warnings=warned(),
        )
        emit(Measured(values=result.metrics))
        folder.finish(result)
    except BaseException:
        folder.abandon()
        raise
    return result


def _report_trained_prompts(run: Path, sources: Mapping[EvaluationSet, Source]) -> None:
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


def deployment_of(loaded: LoadedModel) -> Deployment:
    """How the model's folder says that it is to be served; nothing special where it says nothing."""
    place = resolve(loaded.adapter or loaded.name)
    entries = read_provenance(place).get("deployment", {})
    known = [field.name for field in dataclasses.fields(Deployment)]
    if unknown := [key for key in entries if key not in known]:
        # To leave one out would serve the model in another way than it was trained for.
        raise ModelError(
            f"{place}/antibody.json: deployment has no {quoted(unknown[0])}. It has {', '.join(known)}: remove it."
        )
    return Deployment(**entries)


def measured_values(evaluation: Evaluation) -> dict[str, float]:
    """The value of every measure that there is, by name; judged ones by the first judge."""
    measures = {
        "harmful_score": evaluation.harmful_score,
        "incoherent": evaluation.incoherent,
        "over_refusal": evaluation.over_refusal,
        "finetune_accuracy": evaluation.finetune_accuracy,
        "retention": evaluation.retention,
    }
    return {name: measure.value for name, measure in measures.items() if measure is not None}


def _sources(
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
