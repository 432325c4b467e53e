"""Rooms: arrows point one way, and each keeps what is its own."""

import ast
import re
from pathlib import Path

import pytest

import antibody_llm

ROOMS = (
    "text", "mentions", "errors", "files", "parsing", "paths", "events",
    "primitives", "data", "models", "likelihood", "lab", "english", "profiles", "screening", "training",
    "attacks", "defences", "evaluation", "store", "settings", "runs", "building", "harnesses", "searching", "bench",
    "immunization", "calibration", "audit", "server", "cli",
)  # fmt: skip
SOURCE = Path(antibody_llm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute dotted paths of everything that a file imports, also inside functions."""
    package = ("antibody_llm", *path.relative_to(SOURCE).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = tuple((node.module or "").split(".")) if node.module else ()
            base = package[: len(package) - node.level + 1] + module if node.level else module
            found += [(*base, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_rooms_above_its_own(path):
    room = _room(path)
    if room == "__init__":
        return
    assert room in ROOMS, f"{room} is not a room of DESIGN, section 1"
    for target in _imports(path):
        if target[0] == "antibody_llm" and len(target) > 1 and target[1] in ROOMS:
            assert ROOMS.index(target[1]) <= ROOMS.index(room), f"{path.name} imports {'.'.join(target)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_only_the_training_room_imports_trl_and_only_models_load_and_save(path):
    roots = {target[0] for target in _imports(path)}
    assert "trl" not in roots or _room(path) == "training" or path.match("runs/*.py")
    text = path.read_text(encoding="utf-8")
    if _room(path) not in ("models", "lab", "errors"):
        assert "from_pretrained(" not in text
        assert ".save_pretrained(" not in text


def test_only_the_command_line_knows_a_terminal():
    for path in FILES:
        known = {target[0] for target in _imports(path)} & {"rich", "typer", "click"}
        assert not known or _room(path) == "cli", f"{path} imports {', '.join(known)}"


def test_what_happens_is_reported_as_an_event_and_not_logged():
    for path in FILES:
        if _room(path) not in ("events", "cli", "bench", "server"):  # the server logs requests for its operator
            assert "logging" not in {target[0] for target in _imports(path)}, path


def test_the_verbs_do_not_know_the_lab():
    for path in SOURCE.glob("runs/*.py"):
        assert not re.search(r"\blab\b|\blab[-_.]", path.read_text(encoding="utf-8"), re.IGNORECASE), path.name


def test_defences_never_import_each_other():
    for path in SOURCE.glob("defences/*/*.py"):
        for target in _imports(path):
            if target[:2] == ("antibody_llm", "defences"):
                assert path.name == "__init__.py", f"{path.name} imports {'.'.join(target)}"


def test_trainer_uses_few_names_of_trl_and_they_exist():
    names = {t[-1] for path in FILES for t in _imports(path) if t[0] == "trl"}
    assert len(names) <= 8
    assert names <= {"DPOConfig", "DPOTrainer", "SFTConfig", "SFTTrainer", "add_fused_lm_head"}


def test_only_the_command_line_spells_flags():
    flag = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    spelled = {"cli", "mentions"}  # mentions.py shows how each surface spells a setting
    spelled |= {"bench"}  # called by commands alone; its table prints the commands that make it again
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {match[0]}"
        for path in FILES
        if _room(path) not in spelled
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for match in flag.finditer(node.value)
    ]
    assert not found, "write mentions.setting(name) instead"


def test_no_file_is_longer_than_350_lines():
    long = {str(path.relative_to(SOURCE)) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 350}
    assert not long, "part it by meaning"


def test_no_function_is_longer_than_60_lines():
    long = {
        f"{path.relative_to(SOURCE)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    }
    assert not long, "part it by meaning"
