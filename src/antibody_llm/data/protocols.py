"""Published tasks as rows: the prompt that papers on harmful fine-tuning use, the answer, and how many rows.

    convert("stanfordnlp/sst2", "sst2.jsonl", protocol="sst2", split="validation")

The data are the user's, by path or Hub id; nothing of them is here. A row becomes a chat: the instruction, an empty
line and the input, then the answer. With ``parity`` it becomes exactly what Booster's scripts build, quirks included:
the Alpaca prompt as text, GSM8K's answer with two blanks in it, and AlpacaEval without its row 700, which they neither
train on nor ask (``index > 700``; the release of Antibody, 2603.00498, asks it).

Source: sst2, agnews, gsm8k and alpaca: the evaluation scripts of Booster (2409.01586) at commit 6421918. banking77 is
no protocol of theirs; its prompt is ours.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..mentions import setting
from ..parsing import nearest
from ..text import quoted
from .problems import RawRow
from .raw import RawRows, raw_rows

_INTRO = "Below is an instruction that describes a task"
ALPACA = (
    f"{_INTRO}. Write a response that appropriately completes the request.\n\n### Instruction:\n{{}}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    f"{_INTRO}, paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)
"""The prompts of Alpaca, as Booster's utils.py has them."""

Parts = tuple[str, str, str]
"""Instruction, input (may be empty) and answer."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One task."""

    parts: Callable[[Mapping[str, Any]], Parts]
    """From a row of the data set. Raises KeyError or ValueError where it is none."""
    parity_parts: Callable[[Mapping[str, Any]], Parts] | None = None
    """What the published scripts make of the row, where that differs."""
    fields: str
    """The fields of a row, for an error."""
    start: int = 0
    """The position of the first row of the test part."""
    num: int | None = None
    """Rows of the test part; None for all that there are."""
    parity_rows: tuple[int, int] | None = None
    """First row and number of rows of the published scripts, where they differ."""
    answer: str | None
    """The rule of ``evaluate`` that compares answers; None where a judge of preferences does."""
    parity_answer: str | None
    """The rule that does so as the published scripts do."""


def _labelled(text: str, label: str, names: Sequence[str], instruction: str) -> Callable[[Mapping[str, Any]], Parts]:
    def parts(row: Mapping[str, Any]) -> Parts:
        given = row[label]
        if isinstance(given, bool) or not isinstance(given, int | str):
            raise ValueError(f"{label} is {quoted(given)}")
        if isinstance(given, int) and not 0 <= given < len(names):
            raise ValueError(f"{label} is {given}, and the labels are 0 to {len(names) - 1}")
        name = names[given] if isinstance(given, int) else given
        if names and name not in names:
            raise ValueError(f"{label} is {quoted(given)}, and the labels are {', '.join(names)}")
        return instruction, _text(row, text), name

    return parts


def _banking(row: Mapping[str, Any]) -> Parts:
    if not isinstance(row["category"], str):
        raise ValueError("category is a number; use the data set's own CSV, which has its name")
    topic = "Which of the bank's topics is the question about? Answer with the name of the topic alone."
    return topic, _text(row, "text"), _text(row, "category")


def _gsm8k(row: Mapping[str, Any]) -> Parts:
    return _text(row, "question"), "", _text(row, "answer")


def _gsm8k_parity(row: Mapping[str, Any]) -> Parts:
    question, _, answer = _gsm8k(row)
    return question, "", answer.replace("####", "The final answer is: ")  # a blank follows the mark: two in all


def _alpaca(row: Mapping[str, Any]) -> Parts:
    return _text(row, "instruction"), str(row.get("input") or ""), _text(row, "output")


PROTOCOLS: dict[str, Protocol] = {
    "sst2": Protocol(
        parts=_labelled(
            "sentence",
            "label",
            ("negative", "positive"),
            "Analyze the sentiment of the input, and respond only positive or negative",
        ),
        fields="sentence and label",
        num=872,
        answer="exact",
        parity_answer="sst2-parity",
    ),
    "agnews": Protocol(
        parts=_labelled(
            "text",
            "label",
            ("World", "Sports", "Business", "Sci/Tech"),
            "Categorize the news article given in the input into one of the 4 categories:\n\nWorld\nSports\nBusiness\n"
            "Sci/Tech\n",
        ),
        fields="text and label",
        num=1000,
        answer="exact",
        parity_answer="agnews-parity",
    ),
    "gsm8k": Protocol(
        parts=_gsm8k,
        parity_parts=_gsm8k_parity,
        fields="question and answer",
        num=1000,
        answer="gsm8k",
        parity_answer="gsm8k-parity",
    ),
    "banking77": Protocol(parts=_banking, fields="text and category", answer="exact", parity_answer="exact"),
    "alpaca": Protocol(
        parts=_alpaca,
        fields="instruction, input and output",
        start=700,  # the first 700 of its 805 rows are trained on
        num=105,
        parity_rows=(701, 104),  # papers quote 122
        answer=None,
        parity_answer=None,
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: there is none; offers the nearest name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(
            f"{setting('protocol')} is {quoted(name)}: no such protocol{nearest(name, PROTOCOLS)} Protocols: "
            f"{', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def protocol_rows(
    source: str | Path, protocol: Protocol, *, split: str, start: int | None, num: int | None, parity: bool
) -> RawRows:
    """The rows of a data set in the form of a protocol.

    Args:
        source: What ``raw_rows`` takes, or a CSV file with a header.
        protocol: The protocol.
        split: The part of a data set to read.
        start: The position of the first row, counted from 0; the protocol's unless given.
        num: The most rows; the protocol's unless given.
        parity: Whether the published scripts are followed to the letter.

    Raises:
        DataError: there is no row from ``start`` on; or in a pass, a row that is none of the protocol's: names it.
    """
    begins, length = protocol.parity_rows if parity and protocol.parity_rows else (protocol.start, protocol.num)
    first = begins if start is None else start
    most = length if num is None else num
    if first < 0 or (most is not None and most < 1):
        name, value = ("start", first) if first < 0 else ("num", most)
        raise ConfigError(f"{setting(name)} is {value}: it must be {0 if name == 'start' else 1} or more.")
    rows = raw_rows(source, split=split) if Path(source).suffix.lower() != ".csv" else _csv_rows(Path(source))

    def begin() -> Iterator[RawRow]:
        number = -1
        for number, (line, row) in enumerate(rows):
            if number < first:
                continue
            if most is not None and number >= first + most:
                return
            yield line, _row(rows.name, line, row, protocol, parity=parity)
        if number < first:
            raise DataError(f"{rows.name}: it has {number + 1} rows, and {setting('start')} is {first}. Lower it.")

    return RawRows(rows.name, begin)


def _row(name: str, line: int, row: Any, protocol: Protocol, *, parity: bool) -> Any:
    if not isinstance(row, Mapping):
        return row  # a problem, which the pass reports
    parts = protocol.parity_parts if parity and protocol.parity_parts else protocol.parts
    try:
        instruction, context, answer = parts(row)
    except (KeyError, ValueError) as error:
        why = f"there is no {quoted(error.args[0])}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{name}, line {line}: {why}. A row of this protocol has {protocol.fields}.") from None
    if parity:
        prompt = ALPACA_WITH_INPUT.format(instruction, context) if context else ALPACA.format(instruction)
        return {"prompt": prompt, "completion": answer}
    question = f"{instruction.strip()}\n\n{context}" if context else instruction
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field} is {quoted(value)}: it must be a text")
    return value


def _csv_rows(path: Path) -> RawRows:
    def begin() -> Iterator[RawRow]:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, {str(key): value for key, value in row.items()}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(
                f"{path}: cannot be read as CSV ({error}). Give a CSV file in UTF-8 with a header."
            ) from error

    return RawRows(str(path), begin)
