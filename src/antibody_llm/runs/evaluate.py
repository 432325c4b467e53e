"""Measure a model: harmful score, over-refusal, accuracy on the user's task, retention."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from ..data.records import Record
from ..data.source import Source
from ..errors import ConfigError, DataError, ModelError, OutputError
from ..evaluation.checks import check_judges
from ..evaluation.completions import EvaluationSet, EvaluationSettings, read_completions, write_completions
from ..evaluation.decoding import DecodingSettings
from ..evaluation.endpoint import ServedModel, evaluate_endpoint
from ..evaluation.evaluate import Evaluation, evaluate_model, rejudge
from ..evaluation.judges.preference import PreferenceJudge
from ..evaluation.judges.protocol import Judge
from ..evaluation.judges.registry import as_judges, make_preference_judge
from ..evaluation.judging import without_verdicts
from ..events import Measured, emit, inform, warned
from ..files import write_text
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
from .evaluation_rows import FIELDS, report_trained_prompts, sources_of
from .trainer_config import check_seed
from .verb import verb

EVALUATION = "evaluation.json"
COMPLETIONS = "completions.parquet"
ANSWERS = "answers.jsonl"
"""What an endpoint has answered so far."""


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
    if settings.rejudge is not None:
        return _judged_again(settings, started)
    return _measured(settings, started) if settings.endpoint is None else _asked_of_endpoint(settings, started)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What an evaluation will do, checked before anything is loaded."""

    sources: Mapping[EvaluationSet, Source]
    judges: Sequence[Judge]
    settings: EvaluationSettings
    folder: RunFolder
    comparer: PreferenceJudge | None

    @property
    def completions(self) -> Path:
        return self.folder.path / COMPLETIONS

    @property
    def records(self) -> dict[EvaluationSet, Sequence[Record]]:
        return {role: source.records for role, source in self.sources.items()}


def _planned(settings: EvaluateSettings, profile: Profile, asked: Mapping[str, Any], inputs: Sequence[object]) -> _Plan:
    """Read the data, make the judges and open the run's folder.

    Args:
        settings: The evaluation's.
        profile: The model's.
        asked: What config.yaml has of the model.
        inputs: What the model is read from.
    """
    given: dict[EvaluationSet, Rows | None] = {role: getattr(settings, field) for role, field in FIELDS.items()}
    name = str(settings.endpoint_model if settings.model is None else settings.model)
    sources = sources_of(given, Choice.of(settings), profile, model=name, seed=settings.seed)
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
    judges = as_judges(named)
    comparer, compared = _comparer(settings.preference_judge)
    if not judges and (EvaluationSet.HARMFUL in sources or EvaluationSet.BENIGN in sources):
        raise ConfigError(
            f"harmful and benign prompts need a judge. Name one with {setting('judges')}: keywords is a weak baseline "
            "that only looks for refusal phrases."
        )
    check_judges(judges, sources.keys(), comparer)
    config: dict[str, Any] = {
        "verb": "evaluate",
        **asked,
        "data": {str(role): source.described() for role, source in sources.items()},
        "judges": _names(named),
        **compared,
        "answer": answer,
        "retention_answer": settings.retention_answer,
        "decoding": dataclasses.asdict(decoding),
    }
    config = written_out(settings, config)
    folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=(*inputs, *given.values()))
    how = EvaluationSettings(
        decoding=decoding, task_decoding=decoding, answer=answer, retention_answer=settings.retention_answer
    )
    return _Plan(sources, judges, how, folder, comparer)


def _measured(settings: EvaluateSettings, started: float) -> RunResult:
    """Generate completions here, judge and measure them."""
    name = model_name(cast(str | Path, settings.model))
    adapter = None if settings.adapter is None else model_name(settings.adapter)
    asked = {
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "dtype": settings.dtype,
    }
    plan = _planned(settings, profile_of(name), asked, (name, adapter))
    if plan.folder.state is State.COMPLETE:
        return _stored(plan.folder)
    if _has_completions(plan):
        return _carried_out(plan.folder, settings.seed, lambda: _gone_on(plan), started)
    loaded = load_model(name, adapter=adapter, dtype=settings.dtype)
    report_trained_prompts(Path(str(settings.model)), plan.sources)
    renderer = make_renderer(loaded)
    for source in plan.sources.values():
        report_forgeries(source.records, renderer, "The model is given them as text.")

    def measure() -> Evaluation:
        return evaluate_model(
            loaded.model,  # type: ignore[arg-type]
            loaded.tokenizer,
            renderer=renderer,
            deployment=deployment_of(loaded),
            judges=plan.judges,
            decoding=plan.settings.decoding,
            **{str(role): records for role, records in plan.records.items()},  # type: ignore[arg-type]
            answer=plan.settings.answer,
            retention_answer=plan.settings.retention_answer,
            completions_path=plan.completions,
            comparer=plan.comparer,
        )

    return _carried_out(plan.folder, settings.seed, measure, started)


def _asked_of_endpoint(settings: EvaluateSettings, started: float) -> RunResult:
    """Ask an endpoint for completions, judge and measure them."""
    served = ServedModel(url=cast(str, settings.endpoint), name=cast(str, settings.endpoint_model))
    plan = _planned(settings, Profile(), {}, ())
    if plan.folder.state is State.COMPLETE:
        return _stored(plan.folder)

    def measure() -> Evaluation:
        if _has_completions(plan):
            return _gone_on(plan)
        return evaluate_endpoint(
            served,
            plan.records,
            judges=plan.judges,
            settings=plan.settings,
            completions_path=plan.completions,
            answers_path=plan.folder.path / ANSWERS,
            comparer=plan.comparer,
        )

    return _carried_out(plan.folder, settings.seed, measure, started)


def _has_completions(plan: _Plan) -> bool:
    """Whether an earlier call of the same configuration came as far as storing all completions."""
    return plan.folder.state is State.PARTIAL and plan.completions.is_file()


def _gone_on(plan: _Plan) -> Evaluation:
    inform(f"{plan.completions}: completions of an earlier call; the model is not asked again.")
    return rejudge(plan.completions, plan.judges, comparer=plan.comparer, resume=True)


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
    named, stored = _judges_of(source)
    named = named if settings.judges is None else settings.judges
    judges = as_judges(named)
    comparer, compared = _comparer(settings.preference_judge or stored)
    if not judges and comparer is None:
        raise ConfigError(f"no judge is named. Name one or more with {setting('judges')}.")
    again: list[Judge | PreferenceJudge] = [*judges]
    if comparer is not None and settings.preference_judge is not None:
        again.append(comparer)
    config: dict[str, Any] = {
        "verb": "evaluate",
        "rejudge": {"source": str(source), "sha256": file_digest(source)},
        "judges": _names(named),
        **compared,
    }
    folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=(source,))
    if folder.state is State.COMPLETE:
        return _stored(folder)

    def measure() -> Evaluation:
        copy = folder.path / COMPLETIONS
        if folder.state is State.PARTIAL and copy.is_file():
            return rejudge(copy, judges, comparer=comparer, resume=True)
        rows, decided = read_completions(source)
        write_completions(copy, without_verdicts(rows, again), decided)  # so that one of them is of this call
        return rejudge(copy, judges, comparer=comparer, resume=True)

    return _carried_out(folder, settings.seed, measure, started)


def _first(*numbers: int | None) -> int:
    """The first that is given; 0 is given, and refused by whoever takes it."""
    return next(number for number in numbers if number is not None)


def _judges_of(source: Path) -> tuple[Sequence[str | Judge], str | None]:
    """The names of the judges of a stored evaluation, and of its judge of preferences; none where it does not say."""
    try:
        stored = yaml.safe_load((source.parent / "config.yaml").read_text(encoding="utf-8"))
        named, comparer = stored["judges"], stored.get("preference_judge")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return [], None
    names = [str(name) for name in named] if isinstance(named, list) else []
    return names, comparer if isinstance(comparer, str) else None


def _comparer(named: str | None) -> tuple[PreferenceJudge | None, dict[str, str]]:
    """The judge of preferences, and what config.yaml has of it."""
    return (None, {}) if named is None else (make_preference_judge(named), {"preference_judge": named})


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
    """The value of every measure that there is, by name; judged ones by the first judge.

    With them, where there are any, the first judge's unparsed verdicts and the kappa of every two judges.
    """
    measures = {
        "harmful_score": evaluation.harmful_score,
        "incoherent": evaluation.incoherent,
        "over_refusal": evaluation.over_refusal,
        "finetune_accuracy": evaluation.finetune_accuracy,
        "win_rate": evaluation.win_rate,
        "retention": evaluation.retention,
    }
    values = {name: measure.value for name, measure in measures.items() if measure is not None}
    if evaluation.judged and evaluation.judged[0].num_unparsed:
        values["unparsed"] = evaluation.judged[0].num_unparsed
    agreed = {f"kappa {pair.first} {pair.second}": pair.kappa for pair in evaluation.agreements}
    return values | {name: kappa for name, kappa in agreed.items() if kappa is not None}
