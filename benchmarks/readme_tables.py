"""The tables of the README, docs/scale.md and docs/serving.md, from the catalogue and from committed results.

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

from antibody_llm.bench.purpose import purpose_of
from antibody_llm.defences.catalogue import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
DEFENCES = ROOT / "benchmarks" / "results" / "defences.json"
"""Of the half of the lab's world for ``report``; not there before it has been made."""
WHOLE_WORLD = DEFENCES.with_name("defences_whole_world.json")
"""The same cells on the whole world, on whose prompts the lab's settings were chosen."""
GPU = ROOT / "benchmarks" / "results" / "gpu_check.json"

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


def defences_results() -> dict[str, Any]:
    """The results of the defences that pages show: of the half for reports, else of the whole world."""
    file = DEFENCES if DEFENCES.exists() else WHOLE_WORLD
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def results_table() -> str:
    """Harmful score and accuracy after Antibody alignment, the worst seed of each."""
    rows = defences_results()["rows"]
    purpose_of(rows, "the defences' results")
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


def _gpu_rows(part: str) -> list[Mapping[str, Any]]:
    return [row for row in json.loads(GPU.read_text(encoding="utf-8"))["rows"] if row["part"] == part]


def gpu_costs_table() -> str:
    """The cost of a step beside TRL's trainer and beside our own step without a defence."""
    lines = [
        "| model and step | ms | spread | tokens/s | beside TRL's trainer | beside our `sft` | above the model, GiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in _gpu_rows("cost"):
        if "ms" not in row:
            continue
        ratios = [f"{row[name]:.2f}" if name in row else "" for name in ("x_SFTTrainer", "x_ours")]
        timed = [f"{row['ms']:.0f}", f"{row['spread']:.2f}", f"{row['tokens_per_s']:.0f}"]
        cells = [row["name"], *timed, *ratios, f"{row['step_gib']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_precision_table() -> str:
    """How far five steps on the GPU are from five on the CPU in float32, as shares of the update."""
    lines = ["| defence | float32 | TF32 | bf16 | bf16 on the CPU |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in _gpu_rows("defences"):
        cells = [row[name] for name in ("fp32", "tf32", "bf16", "cpu_bf16")]
        shown = [cell if isinstance(cell, str) else f"{cell:.1e}" for cell in cells]
        lines.append(f"| {row['name']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def memory_table() -> str:
    """What a device needs for Llama 3's shapes, by the model of benchmarks/memory.py."""
    rows = json.loads(GPU.with_name("memory.json").read_text(encoding="utf-8"))["fits"]
    lines = ["| model | trained | devices | `sft`, GiB each | Antibody's alignment, GiB each |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        needs = (
            f"{row[name]:.0f}" if row[name] >= 10 else f"{row[name]:.1f}" for name in ("sft", "antibody alignment")
        )
        lines.append(f"| {row['model']} | {row['way']} | {row['ranks']} | {' | '.join(needs)} |")
    return "\n".join(lines)


def server_table() -> str:
    """How the server holds: kills, clients, lists and memory, as far as there are results."""
    rows: list[tuple[str, str]] = []
    names = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
    if (kills := _server("kills")) is not None:
        for database, rounds in kills["rounds"].items():
            if rounds:
                killed = sum(len(each["kills"]) for each in rounds)
                jobs, files = (sum(each[name] for each in rounds) for name in ("jobs", "files"))
                differing = sum(bool(each["wrong"]) for each in rounds)
                found = f"{killed}, over {jobs} jobs and {files} files; rounds with a difference: {differing} of "
                rows.append((f"SIGKILLs, {names[database]}", f"{found}{len(rounds)}"))
    if (load := _server("load")) is not None:
        times = f"p50 {load['p50_ms']:.0f} ms, p99 {load['p99_ms']:.0f} ms"
        found = f"{load['errors']} errors in {load['requests']} requests; {times}"
        rows.append((f"{load['clients']} clients that poll and list every {load['every_seconds']:.0f} s", found))
        quiet, loaded = (_spread(load[f"step_ms_{name}"]) for name in ("quiet", "loaded"))
        found = f"{100 * load['slowdown']:.1f} %: {quiet}, with clients {loaded}"
        rows.append(("their cost to a training step on another core", found))
    if (lists := _server("lists")) is not None:
        for database, pages in lists["pages"].items():
            found = "; ".join(f"{name} {page['ms']:.0f} ms" for name, page in pages.items())
            rows.append((f"a page of {lists['jobs']:,} jobs, {names[database]}", found))
    if (memory := _server("memory")) is not None:
        for each in memory["uploads"]:
            rows.append((f"memory of the API's process: {each['upload']}", f"{each['peak_mib']:.0f} MiB"))
    return "\n".join(["| what | measured |", "| --- | --- |", *(f"| {what} | {found} |" for what, found in rows)])


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:.0f} ms ({values['from']:.0f} to {values['to']:.0f})"


def immunization_table() -> str:
    """Steps that a defended model and an undefended one withstand, by threshold, as far as there are results."""
    path = GPU.with_name("immunization.json")
    found = json.loads(path.read_text(encoding="utf-8"))["resistance"] if path.exists() else []
    lines = [
        "| harm | threshold | steps, undefended | broken | steps, defended | broken | ratio | 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in found:
        cells = [f"{each['measure']}, {each['prompts']}", f"{each['phi']:.2f} (+{each['margin']:.2f})"]
        for which in ("model", "defended"):
            cells += [each[which]["steps"]["text"], f"{each[which]['broken']} of {each[which]['runs']}"]
        cells += [each["ratio"]["text"], each["interval"]["text"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _server(name: str) -> Any:
    """The results of a benchmark of the server; None where it has not been run."""
    path = GPU.with_name(f"server_{name}.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


TABLES: Mapping[str, Callable[[], str]] = {
    "results": results_table,
    "defences": defences_table,
    "gpu-costs": gpu_costs_table,
    "gpu-precision": gpu_precision_table,
    "memory": memory_table,
    "server": server_table,
    "immunization": immunization_table,
}


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
