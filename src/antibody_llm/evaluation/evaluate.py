"""A model's whole evaluation: generate, store, judge, measure.

The completions are stored before anybody judges them, and their verdicts before anything is measured: a judge that
fails costs no generation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encode import RowError
from ..data.problems import BadRow, report
from ..data.records import Record
from ..data.verdicts import Verdict
from ..errors import EvaluationError
from ..events import warn
from ..models.deployment import Deployment
from ..text import counted
from .checks import PromptRenderer, check_before_generating, check_judges, prompt_text
from .completions import (
    JUDGED_SETS,
    Completion,
    EvaluationSet,
    EvaluationSettings,
    read_completions,
    write_completions,
)
from .decoding import DecodingSettings
from .finetune_accuracy import finetune_accuracy
from .generation import generate
from .harmful_score import harmful_or_incoherent, harmful_score, incoherent
from .judges.agreement import Agreement, agreement
from .judges.preference import PreferenceJudge
from .judges.protocol import Judge, require_verdicts, some_ids
from .judges.registry import as_judges
from .judging import compare_completions, judge_completions, without_verdicts
from .measures import Measure
from .over_refusal import over_refusal
from .retention import retention as retention_measure
from .win_rate import WinRate, win_rate


@dataclass(frozen=True, kw_only=True)
class JudgedMeasures:
    """What one judge found. A measure is None where its rows were not given, or the judge has no such verdict."""

    judge: str
    harmful_score: Measure | None
    """Share of completions to harmful prompts that comply; lower is better."""
    incoherent: Measure | None
    """Share of completions to harmful prompts that are incoherent."""
    harmful_or_incoherent: Measure | None
    over_refusal: Measure | None
    """Share of completions to harmless prompts that refuse; lower is better."""
    benign_incoherent: Measure | None
    """Share of completions to harmless prompts that are incoherent: gibberish is no refusal, and no answer either."""
    num_unparsed: int = 0
    """Completions on which the judge's answer was no verdict. They are counted as harmful, or as refused."""


class Evaluation(BaseModel):
    """The measures of one model. ``model_dump_json`` is evaluation.json; ``model_validate_json`` reads it back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: tuple[JudgedMeasures, ...]
    """One entry per judge, in the order given; the first one's figures are *the* figures."""
    agreements: tuple[Agreement, ...]
    """The agreement of every two judges, over harmful and benign prompts together."""
    finetune_accuracy: Measure | None
    retention: Measure | None
    win_rate: WinRate | None = None
    """The measure in place of ``finetune_accuracy`` where a judge compared test answers with their references."""
    completions: tuple[Completion, ...] = Field(default=(), exclude=True, repr=False)
    """Stored apart, in completions.parquet."""

    @property
    def harmful_score(self) -> Measure | None:
        """The harmful score by the first judge; None without harmful prompts."""
        return self.judged[0].harmful_score if self.judged else None

    @property
    def incoherent(self) -> Measure | None:
        """The incoherent share of harmful prompts by the first judge."""
        return self.judged[0].incoherent if self.judged else None

    @property
    def over_refusal(self) -> Measure | None:
        """Over-refusal by the first judge; None without harmless prompts."""
        return self.judged[0].over_refusal if self.judged else None


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    renderer: PromptRenderer,
    judges: Sequence[Judge],
    decoding: DecodingSettings,
    harmful: Sequence[Record] | None = None,
    benign: Sequence[Record] | None = None,
    test: Sequence[Record] | None = None,
    retention: Sequence[Record] | None = None,
    task_decoding: DecodingSettings | None = None,
    answer: str = "exact",
    retention_answer: str = "exact",
    completions_path: Path | None = None,
    deployment: Deployment | None = None,
    comparer: PreferenceJudge | None = None,
) -> Evaluation:
    """Generate completions for each set that is given, judge and measure them.

    Args:
        model: A causal language model or PEFT model; comes back as it was.
        tokenizer: Its tokenizer.
        renderer: Renders a prompt exactly as in training; another template shifts the harmful score.
        judges: Judges of harmful and benign rows. The first one's figures are shown in tables.
        decoding: How harmful and benign prompts are answered.
        harmful: Rows whose prompts should be refused. None leaves the measure out; an empty list is an error.
        benign: Harmless prompts, for over-refusal.
        test: Rows of the user's task, each ending with its reference answer.
        retention: Rows of unrelated skills, each ending with its reference answer.
        task_decoding: How test and retention prompts are answered; ``decoding`` unless given.
        answer: Rule by which test answers are compared: ``exact``, ``contains`` or ``gsm8k``.
        retention_answer: Rule by which retention answers are compared.
        completions_path: Where to store the completions, if anywhere.
        deployment: How the model's defence wants it prompted and read.
        comparer: Judge that compares test answers with their references, in place of the rule ``answer``.

    Raises:
        EvaluationError: Nothing to measure, a row without prompt or reference, or one without a verdict.
        ConfigError: No judge for harmful or benign rows, one twice, or an unknown answer rule.
    """
    given = {
        EvaluationSet.HARMFUL: harmful,
        EvaluationSet.BENIGN: benign,
        EvaluationSet.TEST: test,
        EvaluationSet.RETENTION: retention,
    }
    records = {name: rows for name, rows in given.items() if rows is not None}
    settings = EvaluationSettings(
        decoding=decoding,
        task_decoding=task_decoding or decoding,
        answer=answer,
        retention_answer=retention_answer,
    )
    check_before_generating(records, judges, settings, renderer, comparer)
    rows = _generated(model, tokenizer, records, renderer, settings, deployment or Deployment())
    if completions_path is not None:
        write_completions(completions_path, rows, settings)
    return judge_and_measure(rows, judges, settings, completions_path, comparer=comparer)


def _generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Mapping[EvaluationSet, Sequence[Record]],
    renderer: PromptRenderer,
    settings: EvaluationSettings,
    served: Deployment,
) -> list[Completion]:
    """A completion for every row, as a server would give it."""
    rows = []
    for sets, how in (
        (JUDGED_SETS, settings.decoding),
        ((EvaluationSet.TEST, EvaluationSet.RETENTION), settings.task_decoding),
    ):
        pairs = [(name, record) for name in sets for record in records.get(name, ())]
        texts = generate(
            model,
            tokenizer,
            _prompts([served.prompt(record) for _, record in pairs], renderer),
            max_new_tokens=how.max_new_tokens,
            batch_size=how.batch_size,
            temperature=how.temperature,
            seed=how.seed,
            stop_ids=renderer.stop_ids,
            where=[record.where for _, record in pairs],
            label=" and ".join(name for name in sets if name in records),
        )
        rows += [
            Completion(
                row_id=record.row_id,
                set=name,
                prompt=prompt_text(record),
                completion=served.completion(text),
                reference=renderer.reference_text(record),
            )
            for (name, record), text in zip(pairs, texts, strict=True)
        ]
    return rows


def _prompts(records: Sequence[Record], renderer: PromptRenderer) -> list[list[int]]:
    """The prompts as tokens. Raises ``DataError`` for rows that the template refuses, all of a file's together."""
    prompts: list[list[int]] = []
    refused: dict[str, list[tuple[int, BadRow]]] = {}
    for record in records:
        try:
            prompts.append(renderer.encode_prompt(record))
        except RowError as error:
            refused.setdefault(record.source, []).append((record.line, error.problem))
    for source, problems in refused.items():
        raise report(source, problems)
    return prompts


def rejudge(
    completions_path: Path,
    judges: Sequence[str | Judge],
    *,
    comparer: PreferenceJudge | None = None,
    resume: bool = False,
) -> Evaluation:
    """Judge stored completions, without a model; the verdicts are added to the file, and only these judges count.

    A judge of the same name has its verdicts replaced; those of others stay in the file.

    Args:
        completions_path: A ``completions.parquet``.
        judges: Names, as the command line has them, or judges.
        comparer: Judge that compares test answers with their references.
        resume: Whether verdicts of slow judges that the file holds are kept.
    """
    rows, settings = read_completions(completions_path)
    made = as_judges(judges)
    check_judges(made, {row.set for row in rows}, comparer)
    return judge_and_measure(rows, made, settings, completions_path, comparer=comparer, resume=resume)


def measure_completions(
    rows: Sequence[Completion],
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    comparer: PreferenceJudge | None = None,
) -> Evaluation:
    """The measures of completions that those judges have judged.

    Raises:
        EvaluationError: There is no completion at all, or one that lacks a verdict or a reference.
    """
    if not rows:
        raise EvaluationError("there is no completion to measure. Give harmful, benign, test or retention rows.")
    of = {name: [row for row in rows if row.set is name] for name in EvaluationSet}
    judged = tuple(
        _judged_measures(of[EvaluationSet.HARMFUL], of[EvaluationSet.BENIGN], judge, settings.decoding)
        for judge in judges
    )
    test, kept, how = of[EvaluationSet.TEST], of[EvaluationSet.RETENTION], settings.task_decoding
    return Evaluation(
        judged=judged,
        agreements=_agreements([row for row in rows if row.set in JUDGED_SETS], judges),
        finetune_accuracy=(
            finetune_accuracy(test, answer=settings.answer, decoding=how) if test and comparer is None else None
        ),
        win_rate=None if comparer is None else win_rate(test, judge=comparer.name, decoding=how),
        retention=retention_measure(kept, answer=settings.retention_answer, decoding=how) if kept else None,
        completions=tuple(rows),
    )


def judge_and_measure(
    rows: Sequence[Completion],
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    path: Path | None,
    *,
    comparer: PreferenceJudge | None = None,
    resume: bool = False,
) -> Evaluation:
    """Judge the rows by each judge in turn, store what each has found, and measure.

    Args:
        rows: Completions; verdicts of a judge that they have already are replaced.
        judges: Who judges them.
        settings: How they were drawn and are compared.
        path: Where to store the rows with their verdicts, if anywhere.
        comparer: Judge that compares test answers with their references.
        resume: Whether verdicts of slow judges that the rows have already are kept.
    """

    def store(judged: Sequence[Completion]) -> None:
        if path is not None:  # after each: a slow judge's work outlives the failure of the next
            write_completions(path, judged, settings)

    if not resume:
        rows = without_verdicts(rows, [*judges, *([] if comparer is None else [comparer])])
    for judge in judges:
        rows = judge_completions(rows, judge, keep=resume, store=None if path is None else store)
    if comparer is not None:
        rows = compare_completions(rows, comparer, store=None if path is None else store)
    return measure_completions(rows, judges, settings, comparer)


def _judged_measures(
    harmful: Sequence[Completion], benign: Sequence[Completion], judge: Judge, decoding: DecodingSettings
) -> JudgedMeasures:
    name, tells_incoherent = judge.name, Verdict.INCOHERENT in judge.verdicts
    tells_refusals = Verdict.REFUSED in judge.verdicts
    unparsed = [row.row_id for row in (*harmful, *benign) if row.verdicts.get(name) is Verdict.UNPARSED]
    if unparsed:
        warn(
            f"{counted(len(unparsed), 'answer')} of the judge {name!r} could not be read as a verdict "
            f"({some_ids(unparsed)}). They count against the model. Read the notes in the stored completions."
        )
    if benign and not tells_refusals:
        warn(f"the judge {name!r} tells harm alone and no refusal, so that it gives no over_refusal.")
    return JudgedMeasures(
        judge=name,
        harmful_score=harmful_score(harmful, judge=name, decoding=decoding) if harmful else None,
        incoherent=incoherent(harmful, judge=name, decoding=decoding) if harmful and tells_incoherent else None,
        harmful_or_incoherent=(
            harmful_or_incoherent(harmful, judge=name, decoding=decoding) if harmful and tells_incoherent else None
        ),
        over_refusal=over_refusal(benign, judge=name, decoding=decoding) if benign and tells_refusals else None,
        benign_incoherent=incoherent(benign, judge=name, decoding=decoding) if benign and tells_incoherent else None,
        num_unparsed=len(unparsed),
    )


def _agreements(rows: Sequence[Completion], judges: Sequence[Judge]) -> tuple[Agreement, ...]:
    if not rows:
        return ()
    ids = [row.row_id for row in rows]
    verdicts = {
        judge.name: require_verdicts(
            [row.verdicts.get(judge.name) for row in rows], row_ids=ids, measure="agreement", judge=judge.name
        )
        for judge in judges
    }
    return tuple(
        agreement(
            verdicts[a.name],
            verdicts[b.name],
            first=a.name,
            second=b.name,
            harm_alone=Verdict.HARMLESS in a.verdicts | b.verdicts,
        )
        for a, b in combinations(judges, 2)
    )
