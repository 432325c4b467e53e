"""The form of an uploaded file to train on, checked while it is read: every fault with its place and how to fix it.

The rules are those of training (``data/``), so that a file that is accepted here does not fail later for its form.
Memory does not depend on the file: a row is in memory at a time, and of the faults the first hundred. A long file is
read in a process of its own, so that neither its rows nor the time they take are felt by other requests.
"""

import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

from ..data.files import rows_of
from ..data.formats import MAX_BAD_ROWS, RowReader
from ..data.preferences import PreferenceReader, is_preference
from ..data.problems import BadRow, RawRow
from ..errors import DataError
from ..text import cut, escaped

MAX_FAULTS = 100
IN_PROCESS_BYTES = 256 * 1024
"""Files up to this size are read where the request is answered: a process costs more."""
CPU_SECONDS = 300
"""CPU time for one file; 512 MB of rows take about a minute."""
NAME = "upload"
"""What ``data`` calls the file in its messages, from which it is cut off again."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row, or with the whole file."""

    line: int | None
    """1-based; None: the file as a whole."""
    field: str | None
    """Where in the row: ``messages[1].role``."""
    kind: str
    """What is wrong, without the row's own details."""
    message: str
    """What was found, and how to fix it."""

    def __str__(self) -> str:
        where = ", ".join(([f"line {self.line}"] if self.line else []) + ([self.field] if self.field else []))
        return f"{where}: {self.message}" if where else self.message


@dataclass
class Validation:
    """What reading a file found."""

    method: str = "supervised"
    """``supervised`` or ``dpo``: what its rows are for."""
    num_rows: int = 0
    num_faults: int = 0
    faults: list[Fault] = field(default_factory=list)
    """The first ``MAX_FAULTS``."""
    complete: bool = True
    """Whether the file was read to its end; False after ``MAX_BAD_ROWS`` faults."""

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it while there are few."""
        self.num_faults += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def details(self) -> str | None:
        """The faults as text, a line each; None where there are none."""
        if not self.num_faults:
            return None
        rows = "1 fault" if self.num_faults == 1 else f"{self.num_faults} faults"
        head = f"{rows} in {self.num_rows} rows."
        if not self.complete:
            head = f"{rows} in the first {self.num_rows} rows; the others were not read."
        if self.num_faults > len(self.faults):
            head += f" The first {len(self.faults)}:"
        return "\n".join([head, *map(str, self.faults)])


def validate(file: BinaryIO, *, line_bytes: int) -> Validation:
    """Read a file of rows to its end.

    Args:
        file: Its bytes, from the beginning.
        line_bytes: Longest row.
    """
    found = Validation()
    buffered: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(file)
    reader: RowReader | PreferenceReader | None = None
    try:
        for row_id, (line, row) in enumerate(_rows(buffered, line_bytes)):
            found.num_rows += 1
            if reader is None and not isinstance(row, BadRow):
                reader = PreferenceReader(NAME) if is_preference(row) else RowReader(NAME, trainable=True)
                found.method = "dpo" if isinstance(reader, PreferenceReader) else "supervised"
            try:
                if reader is None or isinstance(row, BadRow):
                    raise row
                reader.read(row_id, line, row)
            except BadRow as problem:
                found.add(Fault(line, problem.field or None, problem.kind, _short(str(problem))))
                if found.num_faults >= MAX_BAD_ROWS:
                    found.complete = False
                    break
    except DataError as error:
        found.add(_whole(error))
    return found


def _rows(file: io.BufferedReader, line_bytes: int) -> Iterator[RawRow]:
    return rows_of(NAME, file, max_line_bytes=line_bytes)


def _whole(error: DataError) -> Fault:
    """An error after which nothing more can be read, its place taken out of its message."""
    text = str(error)
    place = re.match(rf"{NAME}(?:, line (\d+))?(?:, ([^ :]+))?: ", text)
    if place is None:
        return Fault(None, None, "unreadable", _short(text))
    line = int(place[1]) if place[1] else None
    message = text[place.end() :].replace(f"< {NAME} >", "< IN >")
    return Fault(line, place[2], "unreadable", _short(message[:1].upper() + message[1:]))


def _short(message: str) -> str:
    return cut(escaped(message), 1000)


# -- in a process of its own -----------------------------------------------------------------------------------------


def validate_blob(file: BinaryIO, *, num_bytes: int, line_bytes: int, memory_bytes: int) -> Validation:
    """Do what ``validate`` does, in a process of its own where the file is long.

    Args:
        file: The stored file.
        num_bytes: Its length.
        line_bytes: Longest row.
        memory_bytes: Address space of that process.
    """
    if num_bytes <= IN_PROCESS_BYTES:
        return validate(io.BytesIO(file.read()), line_bytes=line_bytes)
    command = [sys.executable, "-m", "antibody_llm.server.validation", str(line_bytes), str(memory_bytes)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        while piece := file.read(2**20):
            try:
                child.stdin.write(piece)
            except BrokenPipeError:  # it has read enough, or has died
                break
        child.stdin.close()
    except BrokenPipeError:
        pass
    try:
        answer = child.stdout.read()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    return _answered(answer)


def _answered(answer: bytes) -> Validation:
    try:
        made = json.loads(answer)
    except ValueError:
        found = Validation()
        message = "The file takes too much memory or time to read. Split long rows, and remove empty lines."
        found.add(Fault(None, None, "unreadable", message))
        return found
    return Validation(**made | {"faults": [Fault(**fault) for fault in made["faults"]]})


def _main(arguments: list[str]) -> None:
    line_bytes, memory_bytes = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        found = validate(sys.stdin.buffer, line_bytes=line_bytes)
    except MemoryError:
        sys.exit(3)
    print(json.dumps(found.to_json()))


if __name__ == "__main__":
    _main(sys.argv[1:])
