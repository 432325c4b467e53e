"""Docstrings and messages read as plain modern English: the turns that we no longer write are not found."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import antibody_llm

SOURCE = Path(antibody_llm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NOT_YET: tuple[str, ...] = ()
"""Rooms whose prose is still to be gone over."""

BANNED = {
    r"\blikewise\b": "say what it is: a line stands alone",
    r"\banew\b": "again",
    r"\bmend(ed|ing|s)?\b": "fix",
    r"\bdone without\b": "continue without it",
    r"\btells? (of|who|what|where|how|whether)\b": "report, say",
    r"\btold\b": "reported, said, known",
    r"\bfor ever\b": "forever",
    r"\bbears? (the|another|its) name\b": "has the name, is called",
    r"\b[Tt]akes? up\b": "restore, continue",
    r"\bat work\b": "running, busy",
    r"\bstands? (for|in|behind|before|after|around|there|here)\b": "is, means",
    r"\b(whereof|wherein|thereof|save what)\b": "say it plainly",
}
"""A pattern, and what to write instead."""


def _strings(*, documentation: bool) -> Iterator[tuple[str, str]]:
    """Strings of the rooms that have been gone over, each with its place.

    Args:
        documentation: Whether to take docstrings alone, those under attributes included; else every string.
    """
    for path in FILES:
        name = str(path.relative_to(SOURCE))
        if name.split("/")[0] in NOT_YET:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            held = node.value if documentation and isinstance(node, ast.Expr) else None if documentation else node
            if isinstance(held, ast.Constant) and isinstance(held.value, str):
                yield f"{name}:{held.lineno}", held.value


@pytest.mark.parametrize("pattern", BANNED)
def test_no_docstring_or_message_has_a_turn_that_we_no_longer_write(pattern):
    texts = _strings(documentation=False)
    assert not [f"{where}: {m[0]}" for where, text in texts for m in re.finditer(pattern, text)], BANNED[pattern]


def test_no_docstring_begins_with_a_fragment():
    fragment = re.compile(r"\s*(Of|As|On|For|By|With|In|After|Before|Likewise|The same)\b")
    found = [f"{where}: {text.strip()[:60]}" for where, text in _strings(documentation=True) if fragment.match(text)]
    assert not found, "begin with a sentence that has a subject, or an imperative"


def test_an_argument_s_line_stands_alone():
    argument = re.compile(r"^\s+\w+: (Of|As|Likewise|The same)\b.*$", re.M)
    texts = _strings(documentation=True)
    found = [f"{where}: {match[0].strip()}" for where, text in texts for match in argument.finditer(text)]
    assert not found, "say what the argument is"
