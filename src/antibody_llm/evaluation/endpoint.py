"""The evaluation of a model that is served elsewhere: its completions come from an OpenAI-compatible endpoint.

Each prompt is sent as the messages of a chat, and the server puts its own template around them. Answers are written to
a file as they come, a line each, so that a run that is killed or that loses its endpoint asks for none of them twice.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..data.records import Record
from ..errors import EvaluationError
from ..events import report_progress
from .checks import check_before_generating, prompt_text
from .completions import JUDGED_SETS, Completion, EvaluationSet, EvaluationSettings, write_completions
from .decoding import DecodingSettings
from .evaluate import Evaluation, judge_and_measure
from .http import CallRefused, Endpoint
from .judges.preference import PreferenceJudge
from .judges.protocol import Judge

KEY_VARIABLE = "ANTIBODY_ENDPOINT_KEY"
Key = tuple[str, int]
"""A row: its set and its position within it."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model behind an endpoint."""

    url: str
    """The endpoint's base, such as ``http://localhost:8000/v1``."""
    name: str
    """What the endpoint calls the model."""


class _Messages:
    """Reads references as they are written: the template is the server's."""

    def reference_text(self, record: Record) -> str | None:
        last = record.messages[-1]
        return last.content if last.role == "assistant" else None


def evaluate_endpoint(
    served: ServedModel,
    records: Mapping[EvaluationSet, Sequence[Record]],
    *,
    judges: Sequence[Judge],
    settings: EvaluationSettings,
    completions_path: Path,
    answers_path: Path,
    comparer: PreferenceJudge | None = None,
) -> Evaluation:
    """Ask the endpoint for a completion of each row, judge and measure them.

    Args:
        served: The model.
        records: Rows by set.
        judges: Judges of harmful and benign rows.
        settings: How answers are drawn and compared; ``batch_size`` is the most calls at a time.
        completions_path: Where to store the completions.
        answers_path: Where answers are kept as they come; those of an earlier call are used, and it is removed in the
            end.
        comparer: Judge that compares test answers with their references, in place of the rule ``settings.answer``.

    Raises:
        EvaluationError: Nothing to measure, a row without prompt or reference, one that the endpoint refuses, or an
            endpoint that cannot be used. Answers that came are kept.
    """
    check_before_generating(records, judges, settings, _Messages(), comparer)
    answers = _stored_answers(answers_path)
    for sets, how in ((JUDGED_SETS, settings.decoding), (tuple(records.keys() - JUDGED_SETS), settings.task_decoding)):
        rows = [(name, record) for name in sets for record in records.get(name, ())]
        _ask(served, rows, how, answers, answers_path)
    completions = [
        Completion(
            row_id=record.row_id,
            set=name,
            prompt=prompt_text(record),
            completion=answers[name.value, record.row_id],
            reference=_Messages().reference_text(record),
        )
        for name in EvaluationSet
        for record in records.get(name, ())
    ]
    write_completions(completions_path, completions, settings)
    answers_path.unlink(missing_ok=True)
    return judge_and_measure(completions, judges, settings, completions_path, comparer=comparer)


def _ask(
    served: ServedModel,
    rows: Sequence[tuple[EvaluationSet, Record]],
    how: DecodingSettings,
    answers: dict[Key, str],
    path: Path,
) -> None:
    """Add the answers to those rows that have none to ``answers``, and to the file as they come."""
    missing = [(name, record) for name, record in rows if (name.value, record.row_id) not in answers]
    label = " and ".join(dict.fromkeys(name.value for name, _ in rows))
    done = len(rows) - len(missing)
    endpoint = Endpoint(served.url, key_variable=KEY_VARIABLE, field="endpoint", concurrency=how.batch_size)
    bodies = [_body(served, record, how) for _, record in missing]
    with path.open("a", encoding="utf-8") as file:
        try:
            for number, answer in endpoint.post_each("chat/completions", bodies):
                name, record = missing[number]
                text = _text(answer, record)
                _store(file, (name.value, record.row_id), text)
                answers[name.value, record.row_id] = text
                done += 1
                report_progress(label, done, len(rows))
        except EvaluationError as error:
            raise EvaluationError(
                f"{error.message} {done} of {len(rows)} answers are kept; the same call goes on from there.",
                field=error.field,
            ) from error


def _body(served: ServedModel, record: Record, how: DecodingSettings) -> dict[str, Any]:
    messages = record.messages[:-1] if record.messages[-1].role == "assistant" else record.messages
    body: dict[str, Any] = {
        "model": served.name,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "max_tokens": how.max_new_tokens,
        "temperature": how.temperature,
    }
    if record.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise EvaluationError(f"{record.where}: a row with tools cannot be asked of an endpoint. Remove it.")
    if how.temperature > 0:  # another stream for each row, as in ``generation``
        body["seed"] = (how.seed * 1_000_003 + record.row_id) % 2**31
    return body


def _text(answer: Mapping[str, Any] | CallRefused, record: Record) -> str:
    """What the model said; what it refuses in a field of its own is what it said too.

    Raises:
        EvaluationError: the endpoint refused the row, or its answer is no chat completion.
    """
    if isinstance(answer, CallRefused):
        raise EvaluationError(f"{record.where}: {answer.message} Shorten or remove the row.", field="endpoint")
    try:
        message = answer["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise EvaluationError(
            f"{record.where}: the endpoint's answer is no chat completion. Check that its URL ends where "
            "/chat/completions begins.",
            field="endpoint",
        )
    return text.strip()


def _store(file: IO[str], key: Key, text: str) -> None:
    file.write(json.dumps([*key, text]) + "\n")
    file.flush()


def _stored_answers(path: Path) -> dict[Key, str]:
    """The answers of an earlier call. A line that a kill cut short is asked for again, and removed."""
    answers: dict[Key, str] = {}
    if not path.is_file():
        return answers
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line break is a line cut short
    for line in lines:
        with suppress(ValueError, TypeError):
            name, row_id, text = json.loads(line)
            answers[name, row_id] = text
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return answers
