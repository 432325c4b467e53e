"""What benchmarks of a matrix have in common: its figures are kept in a file, and perhaps a page is made of the file.

python benchmarks/NAME.py --read DIR [--output FILE]          DIR: the output of antibody bench
python benchmarks/NAME.py --report FILE [--write PAGE]        where there is a page
"""

import argparse
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from antibody_llm.bench.outputs import PARQUET
from antibody_llm.files import write_text

Page = tuple[str, Mapping[str, str]]
"""The page, and its pictures by their place from the page's folder."""


def keep_or_show(
    arguments: Sequence[str] | None,
    *,
    doc: str | None,
    results: Path,
    left: str,
    keep: Callable[[Path], str],
    show: Callable[[Any], Page] | None = None,
) -> int:
    """Carry out the command line of the head; returns its exit code.

    Args:
        arguments: Of the command line.
        doc: The script's own head.
        results: Where its figures go unless something else is said.
        left: A file that the command leaves in DIR.
        keep: Makes the figures' text of DIR; raises ValueError where they are not whole.
        show: Makes the page of the figures.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--read", type=Path, metavar="DIR", help="folder of a command that has ended")
    parser.add_argument("--output", type=Path, default=results, metavar="FILE", help="where its figures go")
    if show is not None:
        parser.add_argument("--report", type=Path, metavar="FILE", help="such figures to make the page of")
        parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes  [default: stdout]")
    options = parser.parse_args(arguments)
    report: Path | None = getattr(options, "report", None)
    if (options.read is None) == (report is None):
        parser.error("give --read DIR" + (", or --report FILE to make the page" if show is not None else ""))
    source: Path = report or options.read / left
    if not source.is_file():
        parser.error(f"{source}: there is no such file: it is written by the command whose folder this is")
    if report is None or show is None:
        try:
            write_text(options.output, keep(options.read))
        except ValueError as error:
            parser.error(str(error))
        return 0
    made, pictures = show(json.loads(report.read_text(encoding="utf-8")))
    if options.write is None:
        print(made, end="")
        return 0
    for place, picture in pictures.items():
        (options.write.parent / place).parent.mkdir(exist_ok=True)
        write_text(options.write.parent / place, picture)
    write_text(options.write, made)
    return 0


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of a matrix, one for each cell that has ended."""
    rows: list[dict[str, Any]] = pq.read_table(folder / PARQUET).to_pylist()
    return rows


def row_a_line(rows: Iterable[Mapping[str, Any]], **more: Any) -> str:
    """A file of figures: ``rows``, one a line, after what else is said."""
    head = "".join(f"{json.dumps(name)}: {json.dumps(value)}, " for name, value in more.items())
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    return f'{{{head}"rows": [\n{lines}\n]}}\n'


def wrapped(text: str, hang: str = "") -> str:
    """Text of lines that the docs have."""
    return "\n".join(textwrap.wrap(text, 118, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False))
