"""The tables of the README, from the catalogue and from committed results.

    python benchmarks/readme_tables.py [--file README.md] [--check]

A table is what is between ``<!-- NAME: ... -->`` and ``<!-- end of NAME -->``; the rest of the file is left alone. The
test beside it checks that the committed file is what this script would write, so that neither a number nor a defence is
typed by hand. ``--check`` writes nothing and ends with exit code 1 if the file would change.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from antibody_llm.defences.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "antibody_posterior.json"

SHOWN = {
    "sft": "plain fine-tuning",
    "antibody": "`antibody`, the paper's weights",
    "antibody-posterior": "`antibody-posterior`, ours",
    "oracle": "plain fine-tuning without the harmful rows (oracle)",
}
SETTING: Mapping[str, Any] = {
    "alignment": "antibody",
    "poison_ratio": 0.2,
    "budget": "default",
    "regime": "full",
    "learning_rate": None,
}


def results_table() -> str:
    """Harmful score and accuracy after Antibody alignment, the worst seed of each."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    lines = ["| fine-tuning | familiar task | novel task |", "| --- | ---: | ---: |"]
    for name, label in SHOWN.items():
        cells = [_worst(rows, name, task) for task in ("familiar", "novel")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _worst(rows: Sequence[Mapping[str, Any]], finetuning: str, task: str) -> str:
    wanted = {**SETTING, "finetuning": finetuning, "task": task}
    found = {row["seed"]: row for row in rows if all(row[key] == value for key, value in wanted.items())}
    assert len(found) == 3, f"{finetuning}, {task}: three seeds are needed, there are {len(found)}"
    harmful = max(row["harmful_score"] for row in found.values())
    accuracy = min(row["finetune_accuracy"] for row in found.values())
    return f"{100 * harmful:.1f} / {100 * accuracy:.1f}"


def defences_table() -> str:
    """Every defence: name, stage, paper and a line, in the order of the catalogue."""
    lines = ["| name | stage | paper | |", "| --- | --- | --- | --- |"]
    for (stage, name), defence in CATALOGUE.items():
        about = defence.about
        paper = f"[{about.paper}](https://arxiv.org/abs/{about.paper})" if about.paper else ""
        lines.append(f"| `{name}` | {stage} | {paper} | {about.summary} |")
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[], str]] = {"results": results_table, "defences": defences_table}


def filled(text: str) -> str:
    """The text with every table that it marks made again."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        content = table() if marked.search(text) else ""
        text = marked.sub(lambda found, content=content: f"{found[1]}\n{content}\n\n{found[2]}", text)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or check them; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--file", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the file would change")
    given = parser.parse_args(arguments)
    before = given.file.read_text(encoding="utf-8")
    after = filled(before)
    if given.check:
        return int(before != after)
    given.file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
