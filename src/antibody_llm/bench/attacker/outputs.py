"""What a search leaves for readers: worst_case.json, worst_case.md, worst_case.html and trials.parquet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...files import whole, write_text
from ..tables import Table

VALUES, MARKDOWN, TRIALS = "worst_case.json", "worst_case.md", "trials.parquet"


def write_worst_case(folder: Path, worst: Mapping[str, Any], tables: Sequence[Table]) -> dict[str, str]:
    """Write every file; returns their paths by kind.

    Raises:
        OutputError: the folder cannot be written.
    """
    write_text(folder / VALUES, json.dumps(worst, indent=1) + "\n")
    write_text(folder / MARKDOWN, f"# {worst['title']}\n\n" + "\n".join(table.markdown() for table in tables))
    rows = [row for each in worst["defences"] for row in each["trials"]]
    with whole(folder / TRIALS) as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    files = {"values": VALUES, "markdown": MARKDOWN, "trials": TRIALS}
    return {kind: str(folder / name) for kind, name in files.items()}
