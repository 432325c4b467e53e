"""What a search leaves for readers: worst_case.json, worst_case.md, worst_case.html and trials.parquet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import whole, write_text
from ...text import counted
from ..outputs import page
from ..tables import Table
from .pictures import comparison, curves
from .tables import points, verdict

VALUES, MARKDOWN, PAGE, TRIALS = "worst_case.json", "worst_case.md", "worst_case.html", "trials.parquet"


def write_worst_case(folder: Path, worst: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, str]:
    """Write every file; returns their paths by kind.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / VALUES, json.dumps(worst, indent=1) + "\n")
    write_text(folder / MARKDOWN, f"# {worst['title']}\n\n" + "\n".join(table.markdown() for table in tables))
    write_text(folder / PAGE, worst_page(worst, tables))
    rows = [row for each in worst["defences"] for row in each["trials"]]
    with whole(folder / TRIALS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    files = {"values": VALUES, "markdown": MARKDOWN, "report": PAGE, "trials": TRIALS}
    return {kind: str(folder / name) for kind, name in files.items()}


def worst_page(worst: Mapping[str, Any], tables: Sequence[Table]) -> str:
    """The whole page, which needs no other file."""
    most = max((each["num_trials"] for each in worst["defences"]), default=0)
    return page(
        "worst_case.html",
        title=worst["title"],
        worst=worst,
        trials=counted(most, "trial", "trials"),
        verdict=verdict(worst),
        guide=points(worst["guide"]),
        comparison=comparison(worst),
        curves=curves(worst),
        tables=tables,
    )
