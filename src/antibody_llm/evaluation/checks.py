"""What can be known to fail before minutes are spent on generation."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from ..data.records import Record
from ..errors import ConfigError, EvaluationError
from ..mentions import setting
from .answers import UnreadableReference, answer_rule
from .completions import JUDGED_SETS, EvaluationSet, EvaluationSettings
from .judges.preference import PreferenceJudge
from .judges.protocol import Judge


class ReferenceReader(Protocol):
    """What reads the answers that completions are compared with."""

    def reference_text(self, record: Record) -> str | None:
        """The text of the row's closing answer, calls of tools as the template writes them; None without one."""


class PromptRenderer(ReferenceReader, Protocol):
    """What turns a row's prompt into tokens, too: ``data.encode.Renderer``."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Tokens at which a completion ends, the chat template's end of a turn included."""

    def encode_prompt(self, record: Record) -> list[int]:
        """Tokens of everything before the last assistant message, ready for the model to answer."""


def prompt_text(record: Record) -> str:
    """What is asked, for judges and readers: the last user message."""
    return next((m.content for m in reversed(record.messages) if m.role == "user"), "")


def check_before_generating(
    records: Mapping[EvaluationSet, Sequence[Record]],
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    reader: ReferenceReader,
    comparer: PreferenceJudge | None = None,
) -> None:
    """Refuse rows, judges and rules with which the evaluation would fail in the end.

    Raises:
        EvaluationError: nothing to evaluate on, or a row without prompt or reference.
        ConfigError: no judge, one twice, one of preferences without test rows, or an unknown answer rule.
    """
    if not records:
        raise EvaluationError("there is nothing to evaluate on. Give harmful, benign, test or retention rows.")
    for name, rows in records.items():
        if not rows:
            raise EvaluationError(
                f"the {name} rows are an empty list, and a measure over nothing would read as 0. Give rows, or leave "
                "them out."
            )
        for record in rows:
            if not prompt_text(record):
                raise EvaluationError(f"{record.where}: the row has no user message to answer. Add one, or remove it.")
    check_judges(judges, records.keys(), comparer)
    for name, field in ((EvaluationSet.TEST, "answer"), (EvaluationSet.RETENTION, "retention_answer")):
        _check_references(records.get(name, ()), getattr(settings, field), reader, field=field)


def _check_references(rows: Sequence[Record], answer: str, reader: ReferenceReader, *, field: str) -> None:
    readable = answer_rule(answer, field=field)
    for record in rows:
        reference = reader.reference_text(record)
        if reference is None:
            raise EvaluationError(
                f"{record.where}: the row has no reference answer. A test row ends with the assistant's answer; append "
                "it, or remove the row."
            )
        try:
            readable("", reference)
        except UnreadableReference as error:
            raise EvaluationError(
                f"{record.where}: the reference answer {error}, so it cannot be compared by {answer!r}. Correct the "
                "row, or choose another answer rule."
            ) from None


def check_judges(
    judges: Sequence[Judge], sets: Collection[EvaluationSet], comparer: PreferenceJudge | None = None
) -> None:
    """Refuse a judge that is given twice, none where one is needed, and one of preferences that has nothing to do."""
    names = [judge.name for judge in judges]
    if comparer is not None and EvaluationSet.TEST not in sets:
        raise ConfigError(
            f"{setting('preference_judge')} compares test answers with their references, and there are none. Give "
            f"{setting('test_data')}, or leave it out."
        )
    if not names and any(name in JUDGED_SETS for name in sets):
        raise ConfigError(
            "harmful and benign rows need a judge and none is given. Name one, such as 'lab'.", field="judges"
        )
    names += [] if comparer is None else [comparer.name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"the judge {twice[0]!r} is given twice. Name each judge once.", field="judges")
