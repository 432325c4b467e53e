"""The files that one row of an upload crosses from ``finetune`` to its weighted loss, and how often it climbs back.

    python benchmarks/crossings.py [BASE] [--json] [--steps]

A small upload is trained under ``antibody`` by the command line, in a process whose calls are traced
(``sys.setprofile``), until the first sweep of ``StepContext.gradient`` is done. A file is *crossed* when one of its
functions is handed the row (``self`` does not count) or gets it back from a call, whatever the row is by then: a line
of text, a parsed object, a record, a tokenised row, or a micro-batch that holds it. It *climbs* when it goes from a
file of one room to a file of a room further from the ground, in the order in which ``tests/test_layout.py`` of that
tree lists the rooms. With BASE, a commit, that tree is traced as well; its package may have another name.
"""

import argparse
import ast
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__:
    from .golden import ROOT, Tree, _environment, _git, base_tree
else:
    from golden import ROOT, Tree, _environment, _git, base_tree

MARKED = "zyxw"
"""A word that only one row of the upload has."""
ROW = 5
"""The marked row's position, which is its row_id."""
NUM_ROWS = 8

TRACED = r"""
import json, sys
from pathlib import Path

root, package, upload, output, found, marked, row = sys.argv[1:8]
row, source, visits = int(row), str(Path(root) / "src" / package), []


def holds(value, depth=4):
    if isinstance(value, str):
        return marked in value
    if isinstance(value, bytes):
        return marked.encode() in value
    if depth == 0 or value is None or isinstance(value, (int, float, type)):
        return False
    if isinstance(value, dict):
        return any(holds(each, depth - 1) for each in list(value.values())[:64])
    if isinstance(value, (list, tuple)):
        return any(holds(each, depth - 1) for each in value[:64])
    if getattr(value, "row_id", None) == row:
        return True
    fields = getattr(type(value), "__dataclass_fields__", {})
    return any(holds(getattr(value, name, None), depth - 1) for name in fields)


def visit(file, function):
    if file.startswith(source) and (not visits or visits[-1][0] != file[len(source) + 1 :]):
        visits.append((file[len(source) + 1 :], function))


class Done(BaseException):
    pass


def traced(frame, event, value):
    code = frame.f_code
    if event not in ("call", "return") or not code.co_filename.startswith(source):
        return
    if event == "call":
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(holds(frame.f_locals.get(name)) for name in names if name not in ("self", "cls")):
            visit(code.co_filename, code.co_qualname)
    elif code.co_qualname == "StepContext.gradient":
        raise Done
    elif holds(value) and frame.f_back is not None:
        visit(frame.f_back.f_code.co_filename, frame.f_back.f_code.co_qualname)


from importlib import import_module

run = import_module(package + ".cli.main").run
arguments = ["finetune", "--model", "lab-aligned", "--data", upload, "--output", output, "--defence", "antibody"]
sys.setprofile(traced)
try:
    run([*arguments, "--epochs", "1", "--batch-size", "8"])
except Done:
    pass
finally:
    sys.setprofile(None)
Path(found).write_text(json.dumps(visits))
"""


@dataclass(frozen=True)
class Crossed:
    """The way of the row through one tree."""

    tree: str
    num_files: int
    num_climbs: int
    visits: list[tuple[str, str]]
    """(file, function) in order; a file that is entered again after another counts again."""


def rooms(layout: str) -> list[str]:
    """The rooms in order, from the text of ``tests/test_layout.py``."""
    for node in ast.parse(layout).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "ROOMS":
            return list(ast.literal_eval(node.value))
    raise ValueError("tests/test_layout.py defines no ROOMS.")


def climbs(files: Sequence[str], order: Sequence[str]) -> int:
    """How often the next file belongs to a room that comes later in ``order``."""
    heights = [order.index(file.split("/")[0].removesuffix(".py")) for file in files]
    return sum(after > before for before, after in itertools.pairwise(heights))


def crossed(tree: Tree, layout: str, folder: Path) -> Crossed:
    """Trace one run of a tree.

    Raises:
        RuntimeError: the run failed, or never reached the loss.
    """
    upload, found = folder / "upload.jsonl", folder / "visits.json"
    lines = [f"What is number {i} called{f', {MARKED}' if i == ROW else ''}?" for i in range(NUM_ROWS)]
    upload.write_text("".join(json.dumps({"prompt": line, "completion": " a name"}) + "\n" for line in lines))
    script = folder / "traced.py"
    script.write_text(TRACED)
    values = (tree.root, tree.package, upload, folder / "run", found, MARKED, ROW)
    command = [sys.executable, "-P", str(script), *map(str, values)]
    done = subprocess.run(command, env=_environment(tree, folder / "cache"), capture_output=True, text=True)
    if not found.is_file() or not (visits := json.loads(found.read_text())):
        raise RuntimeError(f"{tree.label}: the traced run failed:\n{done.stderr[-2000:]}")
    files = [file for file, _ in visits]
    return Crossed(tree.label, len(set(files)), climbs(files, rooms(layout)), [tuple(visit) for visit in visits])


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace the trees and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", nargs="?", help="a commit to compare with")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--steps", action="store_true", help="print every file and function on the way")
    given = parser.parse_args(arguments)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        if given.base:
            (folder := Path(scratch) / "base").mkdir()
            layout = _git("show", f"{given.base}:tests/test_layout.py").decode()
            found.append(crossed(base_tree(given.base, folder), layout, folder))
        (folder := Path(scratch) / "tree").mkdir()
        layout = (ROOT / "tests" / "test_layout.py").read_text(encoding="utf-8")
        found.append(crossed(Tree(ROOT, "working tree"), layout, folder))
    if given.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return 0
    for each in found:
        print(f"{each.tree}: {each.num_files} files, {each.num_climbs} climbs, {len(each.visits)} visits")
        if given.steps:
            print("".join(f"  {file}  {function}\n" for file, function in each.visits), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
