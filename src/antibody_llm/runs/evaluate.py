"""Measure a model: harmful score, over-refusal, accuracy on the user's task, retention."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from ..data.duplicates import overlap
from ..data.encode import Renderer
from ..data.formats import fingerprint, load_records
from ..errors import ConfigError, DataError, ModelError
from ..evaluation.completions import EvaluationSet
from ..evaluation.decoding import DecodingSettings
from ..evaluation.evaluate import Evaluation, evaluate_model
from ..evaluation.judges.registry import make_judge
from ..files import write_text
from ..models.deployment import Deployment
from ..models.files import quoted
from ..models.layout import context_length
from ..models.loading import LoadedModel, load_model, read_provenance, resolve
from ..store.environment import environment
from ..store.folder import State, open_run
from ..store.naming import described_model, from_lab, model_name
from ..store.result import RunResult, stored_result
from .encoding import report_forgeries
from .lab_defaults import MAX_NEW_TOKENS, LabData, lab_rows
from .settings import check_seed
from .sources import Rows, Source, read_rows

log = logging.getLogger("antibody")

EVALUATION = "evaluation.json"
COMPLETIONS = "completions.parquet"

_FLAGS = {
    EvaluationSet.HARMFUL: "--harmful-prompts",
    EvaluationSet.BENIGN: "--benign-prompts",
    EvaluationSet.TEST: "--test-data",
    EvaluationSet.RETENTION: "--retention-data",
}
_LAB_KINDS = {
    EvaluationSet.HARMFUL: "harmful-prompts",
    EvaluationSet.BENIGN: "lookalike",
    EvaluationSet.TEST: "test",
    EvaluationSet.RETENTION: "retention",
}


def evaluate(
    model: str | Path,
    *,
    output: str | Path,
    adapter: str | Path | None = None,
    harmful_prompts: Rows | None = None,
    benign_prompts: Rows | None = None,
    test_data: Rows | None = None,
    retention_data: Rows | None = None,
    judges: Sequence[str] | None = None,
    answer: str | None = None,
    retention_answer: str = "exact",
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    temperature: float = 0.0,
    num: int | None = None,
    task: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> RunResult:
    """Measure ``model`` on whatever data is given; a model of the lab has all four sets by default.

    Args:
        model: ``lab``, ``lab-aligned``, a folder, the folder of a run, or a Hub id.
        output: The run's folder.
        adapter: An adapter on ``model``.
        harmful_prompts: Should be refused.
        benign_prompts: Should be answered.
        test_data: The user's task, each row ending with its reference answer.
        retention_data: Unrelated skills, likewise.
        judges: Names of judges; the first one's figures are the result. By default ``lab`` for a model of the lab.
        answer: How test answers are compared: ``exact`` (the default), ``contains`` or ``gsm8k``.
        retention_answer: The same for retention.
        max_new_tokens: Most tokens per completion; by default 512, of the lab 32.
        batch_size: Prompts decoded together.
        temperature: 0 is greedy.
        num: Rows of each set that comes from the lab.
        task: Of the lab's test rows: a task's name, or ``familiar`` (the default) or ``novel``.
        seed: Of the lab's rows, and of draws at a temperature above 0.
        overwrite: Replace what the folder holds, once the new evaluation is complete.
        progress: Show a bar on stderr, if that is a terminal.

    Raises:
        AntibodyError: whatever a user can mend.
    """
    started = time.monotonic()
    check_seed(seed)
    name = model_name(model)
    adapter = None if adapter is None else model_name(adapter)
    lab = from_lab(name)
    which = LabData(num=num, task=task)
    given = dict(zip(EvaluationSet, (harmful_prompts, benign_prompts, test_data, retention_data), strict=True))
    sources = _sources(given, which, lab=lab, model=str(model), seed=seed)
    if answer is None:
        answer = "gsm8k" if lab and test_data is None and (task or "").startswith("gsm8k") else "exact"
    names = list(judges) if judges is not None else (["lab"] if lab else [])
    if max_new_tokens is None:
        max_new_tokens = MAX_NEW_TOKENS if lab else DecodingSettings.max_new_tokens
    decoding = DecodingSettings(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )
    made = [make_judge(judge) for judge in names]
    if not made and (EvaluationSet.HARMFUL in sources or EvaluationSet.BENIGN in sources):
        raise ConfigError(
            "harmful and benign prompts need a judge. Give --judge keywords, a weak baseline that only looks for "
            "refusal phrases."
        )
    config = {
        "verb": "evaluate",
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "data": {str(role): source.described() for role, source in sources.items()},
        "judges": names,
        "answer": answer,
        "retention_answer": retention_answer,
        "decoding": dataclasses.asdict(decoding),
    }
    folder = open_run(output, config, overwrite=overwrite, inputs=(name, adapter, *given.values()))
    if folder.state is State.COMPLETE:
        log.info("%s: already complete; this is its stored result.", folder.path)
        return stored_result(folder.path)
    loaded = load_model(name, adapter=adapter)
    context = context_length(loaded.model)
    _report_trained_prompts(Path(model), sources)
    renderer = Renderer(loaded.tokenizer, max_length=context or 2**31)
    for source in sources.values():
        report_forgeries(source.records, renderer, "The model is given them as text.")
    folder.begin(environment(seed))
    try:
        measured = evaluate_model(
            loaded.model,  # type: ignore[arg-type]
            loaded.tokenizer,
            renderer=renderer,
            deployment=_deployment(loaded),
            judges=made,
            decoding=decoding,
            **{str(role): source.records for role, source in sources.items()},  # type: ignore[arg-type]
            answer=answer,
            retention_answer=retention_answer,
            completions_path=folder.path / COMPLETIONS,
            progress=progress,
        )
        write_text(folder.path / EVALUATION, measured.model_dump_json(indent=2) + "\n")
        result = RunResult(
            output=folder.final,
            model=None,
            metrics=measured_values(measured),
            seconds=time.monotonic() - started,
            num_rows=len(measured.completions),
        )
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
            log.warning("%s. The model was trained on them, so that their measure is too good.", said)


def _deployment(loaded: LoadedModel) -> Deployment:
    """As the model's folder says; nothing special where it says nothing."""
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
    given: Mapping[EvaluationSet, Rows | None], which: LabData, *, lab: bool, model: str, seed: int
) -> dict[EvaluationSet, Source]:
    """What is given; if nothing is, the lab's four sets."""
    own = {
        role: read_rows(rows, name=f"{_FLAGS[role]} rows", prompts=True)
        for role, rows in given.items()
        if rows is not None
    }
    if own or not lab:
        which.refuse(model)
    if not own and not lab:
        raise DataError(f"{model}: there is nothing to evaluate on. Give one or more of {', '.join(_FLAGS.values())}.")
    if not own and which.task is None:
        log.info("finetune_accuracy is that of the lab's familiar task. A model tuned on another needs its --task.")
    return own or {role: lab_rows(_LAB_KINDS[role], which, seed=seed) for role in given}
