"""Rows of preferences (DPO): one prompt, a preferred answer and one that is not.

    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
    {"prompt": [...], "chosen": [...], "rejected": [...]}   TRL's form; text in all three is a prompt and two answers

``preferred_completion`` and ``non_preferred_completion`` are other names of the first form. Each answer is read as the
end of a conversation by the rules of ``rows.py``, so that what is accepted there is accepted here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..mentions import setting
from .formats import MAX_BAD_ROWS
from .problems import BadRow, kind_of, report
from .raw import RawRows
from .records import Record
from .rows import RowContent, check_trainable, row_content

PREFERRED = ("preferred_output", "preferred_completion")
NOT_PREFERRED = ("non_preferred_output", "non_preferred_completion")


@dataclass(frozen=True, slots=True)
class Preference:
    """One row: the same prompt with each of the two answers."""

    preferred: Record
    non_preferred: Record

    @property
    def whole(self) -> Record:
        """Every text of the row in one record: two rows are the same if theirs are."""
        return replace(self.preferred, messages=(*self.preferred.messages, self.non_preferred.messages[-1]))


def is_preference(row: Any) -> bool:
    """Whether a row is meant as one of preferences."""
    return isinstance(row, Mapping) and not {*PREFERRED, *NOT_PREFERRED, "chosen", "rejected"}.isdisjoint(row)


class PreferenceReader:
    """The rows of one source, one after another.

    Args:
        source: What records call it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.begun = False
        """Whether a row of preferences has been read."""

    def read(self, row_id: int, line: int, row: Any) -> Preference:
        """One row.

        Raises:
            BadRow: it cannot be used.
        """
        if isinstance(row, BadRow):
            raise row
        if not isinstance(row, Mapping):
            raise BadRow("not an object", f"a row is a JSON object, this is {kind_of(row)}.")
        if not is_preference(row):
            raise _mixed() if self.begun else _not_preferences()
        self.begun = True
        pair = [self._record(row_id, line, row, names) for names in _answers(row)]
        if pair[0].messages == pair[1].messages:
            raise BadRow(
                "equal answers",
                "both answers are the same, which teaches nothing. Change one, or remove the line.",
                _answers(row)[1][0],
            )
        return Preference(*pair)

    def _record(self, row_id: int, line: int, row: Mapping[str, Any], names: tuple[str, ...]) -> Record:
        field = next((name for name in names if row.get(name) is not None), None)
        if field is None:
            raise BadRow("no answer", f"no {names[0]}. Add the field, or remove the line.", names[0])
        content = _text(row, field) if isinstance(row[field], str) else _chat(row, field)
        return Record(row_id, content.messages, content.template, source=self.source, line=line, tools=content.tools)


def load_preferences(rows: RawRows) -> list[Preference]:
    """Every pair of a source.

    Raises:
        DataError: a row cannot be used; the first bad one in full, and how many more there are.
    """
    reader, pairs, bad = PreferenceReader(rows.name), list[Preference](), list[tuple[int, BadRow]]()
    for row_id, (line, row) in enumerate(rows):
        try:
            pairs.append(reader.read(row_id, line, row))
        except BadRow as problem:
            bad.append((line, problem))
            if problem.kind == "not preferences" or len(bad) == MAX_BAD_ROWS:
                break  # another kind of file: its other rows would only repeat it
    if bad:
        raise report(rows.name, bad)
    return pairs


def preferred_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt and the preferred answer of an accepted pair, as a row of supervised training.

    Earlier turns of the assistant are context in a pair, and are not trained in the row either.
    """
    field = next(name for name in _answers(row)[0] if row.get(name) is not None)
    if isinstance(row[field], str):
        return {"prompt": row["prompt"], "completion": row[field]}
    asked, _ = _asked(row)
    context = [
        message | {"weight": 0} if message.get("role") == "assistant" else message for message in asked["messages"]
    ]
    return {"messages": [*context, *row[field]]} | _tools(asked)


def _mixed() -> BadRow:
    return BadRow(
        "mixed formats",
        "no preferred_output and non_preferred_output, but earlier rows have them. Put each format into a file of its "
        "own.",
    )


def _not_preferences() -> BadRow:
    return BadRow(
        "not preferences",
        f"no preferred_output and non_preferred_output, and {setting('method', 'dpo')} learns from pairs of answers. "
        f"Rows with one answer are trained with {setting('method', 'sft')}.",
    )


def _tools(asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asked[name] for name in ("tools", "functions", "parallel_tool_calls") if name in asked}


def _answers(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if "chosen" in row or "rejected" in row:
        return ("chosen",), ("rejected",)
    return PREFERRED, NOT_PREFERRED


def _text(row: Mapping[str, Any], field: str) -> RowContent:
    if not isinstance(row.get("prompt"), str):
        raise BadRow("no prompt", f"{field} is text, so prompt is text too. Give both as text or as messages.", field)
    made = {"prompt": row["prompt"], "completion": row[field]}
    try:
        content = row_content(made, form="prompt/completion")
        check_trainable(content, form="prompt/completion", row=made)
    except BadRow as problem:
        problem.field = problem.field.replace("completion", field, 1)
        raise
    return content


def _chat(row: Mapping[str, Any], field: str) -> RowContent:
    asked, where = _asked(row)
    answer = row[field]
    if not isinstance(answer, list):
        raise BadRow("not messages", f"a list of one assistant message is needed, this is {kind_of(answer)}.", field)
    if len(answer) != 1:
        raise BadRow("not one message", f"one assistant message is needed, these are {len(answer)}.", field)
    made = {"prompt": asked.get("messages"), "completion": answer} | _tools(asked)
    form = "prompt/completion with messages"
    try:
        content = row_content(made, form=form)
        check_trainable(content, form=form, row={})
    except BadRow as problem:
        problem.field = _placed(problem.field, where, field)
        raise
    return content


def _asked(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What holds the messages in front of the answer, and where a fault of theirs is."""
    if "input" in row:
        asked = row["input"]
        if not isinstance(asked, Mapping):
            raise BadRow("no input", f'input is {{"messages": [...]}}, this is {kind_of(asked)}.', "input")
        return asked, "input.messages"
    if "prompt" not in row:
        raise BadRow("no input", "no input with the messages in front of the answers. Add it.", "input")
    return {**row, "messages": row["prompt"]}, "prompt"


def _placed(field: str, where: str, answer: str) -> str:
    """A field of the row that ``row_content`` saw, in the row as it was written."""
    if field.startswith("prompt"):
        return where + field.removeprefix("prompt")
    if field.startswith("completion"):
        return answer + field.removeprefix("completion")
    return field if where == "prompt" or not field else f"input.{field}"
