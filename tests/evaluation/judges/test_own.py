"""Judges of the user's own, named by where they are."""

import pytest

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import ConfigError
from antibody_llm.evaluation.judges.registry import make_judge

MINE = """
from antibody_llm.data.verdicts import Verdict

class Brief:
    name = "brief"
    verdicts = frozenset({Verdict.COMPLIED, Verdict.REFUSED})

    def judge(self, prompts, completions):
        return [Verdict.REFUSED if len(text) < 9 else Verdict.COMPLIED for text in completions]

def failing():
    raise ZeroDivisionError("no model")

def nothing():
    return object()

number = 3
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def test_a_class_in_a_file_or_in_a_module_is_a_judge(mine, monkeypatch):
    monkeypatch.syspath_prepend(mine.parent)
    for name in (f"{mine}:Brief", "mine:Brief"):
        assert make_judge(name).judge(["a?"], ["no"]) == [Verdict.REFUSED]


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("Breif", "did you mean 'Brief'"),
        ("number", "no class or function 'number'"),
        ("failing", "failing() failed (ZeroDivisionError: no model)"),
        ("nothing", "without name, verdicts, judge"),
        ("", "no class or function ''"),
    ],
)
def test_what_makes_no_judge_is_refused_with_its_reason(mine, attribute, words):
    with pytest.raises(ConfigError) as refused:
        make_judge(f"{mine}:{attribute}")
    assert words in str(refused.value)


def test_a_file_or_module_that_cannot_be_imported_is_refused_with_its_reason(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match="is no file"):
        make_judge(f"{tmp_path}/gone.py:X")
    with pytest.raises(ConfigError, match="No module named 'nothing_of_this_name'"):
        make_judge(f"{tmp_path}/broken.py:X")
    with pytest.raises(ConfigError, match="no_such_module cannot be imported"):
        make_judge("no_such_module:X")
