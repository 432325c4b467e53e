"""Benchmarks whose figures say how safe a model is draw uploads and prompts from one half of the lab's world."""

import ast
from pathlib import Path

import pytest

from antibody_llm.lab.rows import HALVED

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COSTS = {
    *("kills", "server_load", "read_rows", "screen_memory", "server_kills"),  # time, memory, resumption
    "gpu_check",  # the same run on two devices
}
"""Scripts whose figures do not depend on what is asked."""


def whole(call: ast.Call) -> bool:
    """Whether a call may take rows of the whole world."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    named = {keyword.arg for keyword in call.keywords}
    if name == "build_rows":
        (kind, *_) = call.args
        return (not isinstance(kind, ast.Constant) or kind.value in HALVED) and "purpose" not in named
    if name == "evaluate":
        return not named & {"purpose", "harmful_prompts"}
    least = {"lab_kit": 1, "lab_questions": 2}
    return (name in least and len(call.args) < least[name]) or (name == "lab_clean" and "purpose" not in named)


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*.py")), ids=lambda script: script.stem)
def test_no_figure_is_of_the_whole_world(script):
    calls = [node for node in ast.walk(ast.parse(script.read_text("utf-8"))) if isinstance(node, ast.Call)]
    found = [f"line {call.lineno}" for call in calls if whole(call)]
    assert script.stem in COSTS or not found
