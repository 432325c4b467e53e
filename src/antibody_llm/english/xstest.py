"""XSTest's safe prompts, read from a copy of its file: they sound unsafe, and a model that refuses them over-refuses.

P. Röttger et al., "XSTest: A Test Suite for Identifying Exaggerated Safety Behaviours in Large Language Models", NAACL
2024; CC BY 4.0. The file is not shipped here, and its unsafe prompts are never read into a row.
"""

import csv
from pathlib import Path
from typing import Any

from ..errors import DataError

FILE = "xstest_prompts.csv"


def safe_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The prompts that are labelled safe, as chat rows.

    Args:
        path: ``xstest_prompts.csv``, or the folder it is in.

    Raises:
        DataError: the file cannot be read, or is none of XSTest's.
    """
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    try:
        with file.open(encoding="utf-8", newline="") as source:
            rows = list(csv.DictReader(source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}). Name XSTest's {FILE}, or the folder it is in.") from error
    if not rows or not {"prompt", "label"} <= set(rows[0]):
        raise DataError(f"{file}: has no columns 'prompt' and 'label', so it is not XSTest's {FILE}.")
    safe = [row["prompt"] for row in rows if row["label"] == "safe"]
    if not safe:
        raise DataError(f"{file}: no row is labelled safe. Name XSTest's {FILE}.")
    return [{"messages": [{"role": "user", "content": prompt}]} for prompt in safe]
