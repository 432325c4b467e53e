"""Every script in ``examples/`` runs."""

import runpy
import sys
from pathlib import Path

import pytest

from antibody_llm.evaluation.judges import registry

EXAMPLES = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "examples").glob("*.py")
    if path.stem != "server_client"  # needs a server: tests/server/test_tour.py
)

SAYS = {
    "own_data": "harmful_score",
    "own_defence": "leaning",
    "own_judge": "first-words and lab agree",
    "screen_upload": "harm found",
}
"""Part of what each prints."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "output")])
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "JUDGES", dict(registry.JUDGES))  # an example may add its own
    runpy.run_path(str(example), run_name="__main__")
    assert SAYS[example.stem] in capsys.readouterr().out
