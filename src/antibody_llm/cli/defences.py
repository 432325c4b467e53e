"""``antibody defences``: the defences, and the cost of each."""

from typing import Any

from . import options as o


def command(as_json: o.Json = False) -> None:
    """List the defences with stage, paper, needs and cost."""
    from ..defences.catalogue import CATALOGUE
    from ..training.defence import needs_of

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "stage": str(stage),
            "paper": defence.about.paper,
            "needs": needs_of(defence),
            "forwards": defence.about.forwards,
            "backwards": defence.about.backwards,
            "extra_memory": defence.about.extra_memory,
            "summary": defence.about.summary,
        }
        for (stage, name), defence in CATALOGUE.items()
    ]
    lines: list[str] = []
    for row in rows:
        if not lines or row["stage"] != rows[rows.index(row) - 1]["stage"]:
            lines.append(f"{row['stage']}")
        lines.append(f"  {row['name']:<12} {row['summary']}")
        cost = f"{row['forwards']:g} forwards, {row['backwards']:g} backwards, extra memory: {row['extra_memory']}"
        needs = f"needs {', '.join(row['needs'])}; " if row["needs"] else ""
        lines.append(f"  {'':<12} {needs}{cost}" + (f"; {row['paper']}" if row["paper"] else ""))
    o.show({"defences": rows}, lines, as_json=as_json)
