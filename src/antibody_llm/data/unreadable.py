"""Files and lines that are no JSON: what each one is, recognised by name, and the command that turns it into JSON.

Nothing here decides whether a file is read; it only finds the words for one that is not.
"""

import json
import re
import shlex
from pathlib import Path

from ..errors import DataError

BOM = b"\xef\xbb\xbf"

MAGIC: dict[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("a gzip file", "Unpack it: gunzip -c {path} > rows.jsonl"),
    b"BZh": ("a bzip2 file", "Unpack it: bunzip2 -c {path} > rows.jsonl"),
    b"\xfd7zXZ\x00": ("an xz file", "Unpack it: unxz -c {path} > rows.jsonl"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "Unpack it: zstd -dc {path} > rows.jsonl"),
    b"PK\x03\x04": (
        "a zip archive or a spreadsheet",
        "Unpack an archive: unzip {path}. Save a spreadsheet as CSV (UTF-8), and convert that to JSON Lines.",
    ),
    b"PAR1": ("a Parquet file, not JSON", "Name the folder it is in: that is read as a data set."),
    b"ARROW1": (
        "an Arrow file, not JSON",
        "Name the folder of Dataset.save_to_disk that it is in: that is read as a data set.",
    ),
    b"SQLite format 3\x00": ("an SQLite database, not JSON", "Write its rows as JSON Lines first."),
    b"%PDF": ("a PDF document, not JSON", "Write its rows as JSON Lines first."),
    b"\x80\x04\x95": ("a Python pickle, not JSON", "Write its rows with json.dumps, one on each line."),
}
"""First bytes of files that hold no JSON text: what they are, and what to do."""

COLUMNS = {
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "messages",
    "text",
    "question",
    "answer",
    "response",
}

COMMON_LETTERS = {
    "WINDOWS-1252": "éèàçêâîôûëïüöäßñáíóúìòùãõåøæœÉÄÖÜÅØ’‘“”–—€°",
    "WINDOWS-1251": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфОЕАИНТСРВЛКМДПУЯ",
    "GB18030": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子得于着下之年过后作里用请问答",
    "BIG5": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子得於著下之年過後作里用請問答",
    "SHIFT_JIS": "".join(map(chr, range(0x3041, 0x30FD))),
    "EUC-JP": "".join(map(chr, range(0x3041, 0x30FD))),
    "CP949": "이다는을에의가한고하로기지사서리은도인대자어나시니습까요해있그아",
}
"""Encodings that files come in, named as iconv does, and the letters that are frequent in what is written in each."""
SAMPLE_BYTES = 2**16
_YAML = (".yaml", ".yml")
"""The endings of files that hold settings and no rows."""


def os_problem(name: str, path: Path, error: OSError | ValueError) -> DataError:
    """Why the file at ``path``, which its user calls ``name``, cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name}: no such file. Check the path; a Hub data set is written OWNER/NAME.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{name}: a directory, not a data file. {_files_in(path)}")
    if isinstance(error, OSError):
        return DataError(f"{name[:300]}: cannot be read ({error.strerror}). Check the path and its permissions.")
    return DataError(f"{name[:300]!r}: no path ({error}). Check it.")


def empty(name: str) -> DataError:
    """The file has no row."""
    wanted = "Write its keys." if name.endswith(_YAML) else "Give one JSON object on each line."
    return DataError(f"{name}: the file is empty. {wanted}")


def what_bytes_are(name: str, head: bytes) -> DataError | None:
    """What a file with these first bytes is, where it is not UTF-8 text as it should be."""
    if head.startswith(BOM):
        return DataError(
            f"{name}, line 1: begins with a byte order mark (EF BB BF). Save the file as UTF-8 without BOM, "
            f"for example with: sed -i '1s/^\\xEF\\xBB\\xBF//' {shlex.quote(name)}"
        )
    for magic, (what, advice) in MAGIC.items():
        if head.startswith(magic):
            return DataError(f"{name}: {what}. {advice.format(path=shlex.quote(name))}")
    if (encoding := _wide_encoding(head[:SAMPLE_BYTES])) is not None:
        return _other_encoding(f"{name}, line 1: {encoding} text, not UTF-8.", name, encoding)
    return None


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by the zero bytes that it has between those of ASCII text."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if (even + odd) * 5 < len(head) or not head:
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def not_utf8(name: str, line: int, raw: bytes, start: int, *, offset: int) -> DataError:
    """A byte that is not UTF-8, and the encoding that the text around it most likely has.

    Args:
        name: What the file is called.
        line: The line that the byte is in.
        raw: Bytes around it.
        start: Where in ``raw`` it is.
        offset: Where in the file it is.
    """
    sample = raw[max(0, start - SAMPLE_BYTES) :][: 2 * SAMPLE_BYTES]
    what = f"{name}, line {line}: not UTF-8 (byte 0x{raw[start]:02X} at offset {offset})."
    return _other_encoding(what, name, _likely_encoding(sample))


def _other_encoding(what: str, name: str, encoding: str) -> DataError:
    new = "new.yaml" if name.endswith(_YAML) else "rows.jsonl"
    convert = f"iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > {new}"
    return DataError(f"{what} Save the file as UTF-8, for example with: {convert}")


def _likely_encoding(sample: bytes) -> str:
    """The encoding in which most of the letters beyond ASCII are frequent ones."""
    best, likely = 0.0, "WINDOWS-1252"
    for encoding, letters in COMMON_LETTERS.items():
        try:
            text = sample.decode(encoding, errors="strict")
        except UnicodeDecodeError as error:
            if error.start < len(sample) - 4:  # the sample may end within a letter
                continue
            text = sample[: error.start].decode(encoding)
        beyond = [letter for letter in text if letter > "\x7f"]
        share = sum(letter in letters for letter in beyond) / len(beyond) if beyond else 0.0
        if share > best:
            best, likely = share, encoding
    return likely


def what_text_is(name: str, line: int, first: str, rest: str, error: Exception) -> DataError | None:
    """What a file is whose first row is no JSON; None where only that row is broken.

    Args:
        name: What the file is called.
        line: The line of its first row.
        first: That line.
        rest: What follows it, as far as is known.
        error: What the parser said of the line.
    """
    if not isinstance(error, json.JSONDecodeError):
        return None
    where, quoted = f"{name}, line {line}", shlex.quote(name)
    if error.msg == "Extra data" and first[: error.pos].rstrip(" \t").endswith("\r"):
        return DataError(
            f"{where}: lines end in a carriage return alone (old Macintosh), so that the whole file is one line. "
            f"Convert it: tr '\\r' '\\n' < {quoted} > rows.jsonl"
        )
    if first.startswith("{") and error.pos >= len(first.rstrip()) and _spans_lines(first, rest):
        return DataError(
            f"{where}: a JSON object over several lines (pretty-printed). Each line holds one whole JSON object: "
            f"rewrite it with: jq -c . {quoted} > rows.jsonl"
        )
    if error.pos or rest.lstrip().startswith("{"):
        return None
    separator = _separator(name, first)
    if separator is not None:
        kind, tab = ("tab-separated", ", delimiter='\\t'") if separator == "\t" else ("comma-separated", "")
        tab = tab or (", delimiter=';'" if separator == ";" else "")
        return DataError(
            f"{where}: {kind} values, not JSON. Name the columns prompt and completion, and convert the file: "
            f'python -c "import csv, json, sys; [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{tab})]" '
            f"< {quoted} > rows.jsonl"
        )
    if first.startswith("<"):
        return DataError(f"{where}: HTML or XML, not JSON. Give one JSON object on each line.")
    if first.startswith(("---", "- ")) or Path(name).suffix in {".yaml", ".yml"}:
        return DataError(f"{where}: YAML, not JSON. Give one JSON object on each line.")
    if re.match(r"[\w'\"(#*“«]", first):
        return DataError(
            f"{where}: plain text, not JSON. Text alone has no question and answer to train on: write each row as "
            '{"prompt": "...", "completion": "..."}, one on each line.'
        )
    return None


def _spans_lines(first: str, rest: str) -> bool:
    text = first + rest
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and end > len(first)


def _separator(name: str, header: str) -> str | None:
    for separator in ("\t", ",", ";"):
        columns = [column.strip().strip('"').lower() for column in header.split(separator)]
        if len(columns) > 1 and not COLUMNS.isdisjoint(columns):
            return separator
    return {".csv": ",", ".tsv": "\t"}.get(Path(name).suffix.lower())


def broken_text(text: str, error: json.JSONDecodeError, rule: str) -> tuple[str, str]:
    """Kind and message of a row that is no JSON, by the mistakes that home-made files make.

    Args:
        text: What was parsed.
        error: What the parser said of it.
        rule: What the place should hold, as a sentence; may be empty.
    """
    rest = text[error.pos :]
    if re.match(r"'|(None|True|False)\b", rest):
        return "Python's notation", (
            "broken JSON: written as Python prints it (single quotes, None, True), not as JSON. Write each row with "
            "json.dumps(row)."
        )
    if error.msg == "Extra data" and rest.strip() == ",":
        return "comma at the end", (
            "broken JSON: the line ends in a comma, and JSON Lines have none between rows. Remove it, for example "
            "with: sed 's/,[[:space:]]*$//' IN > OUT"
        )
    if error.msg == "Extra data" and rest.startswith(("{", "[")):
        return "two values on a line", f"broken JSON: a second value on the line. {rule} Begin a new line before it."
    comma = text[: error.pos].rstrip().endswith(",") and rest[:1] in {"}", "]"}
    if comma or error.msg.startswith("Illegal trailing comma"):
        return "comma before a bracket", (
            f"broken JSON: a comma before the closing bracket (column {error.colno}). Remove the comma."
        )
    return "broken JSON", f"broken JSON ({error.msg}, column {error.colno}). {rule and rule + ' '}Fix or remove it."


def _files_in(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in {".json", ".jsonl"})
    return f"Name one of its files: {', '.join(names[:5])}." if names else "It holds no .json or .jsonl file."
