"""The page on matrices: its example is a matrix, and its commands name presets that there are."""

import re
import textwrap
from pathlib import Path

import yaml

from antibody_llm.bench.matrix_file import make_matrix, presets

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "bench.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_is_a_matrix_that_can_be_run():
    (block,) = [found for found in re.findall(r"(?:^    .*\n|^\n)+", PAGE, re.M) if "defences:" in found]
    matrix = make_matrix(yaml.safe_load(textwrap.dedent(block)), "the page")
    assert [defence.name for defence in matrix.defences] == ["sft", "booster", "ours", "firm lisa"]
    assert set(matrix.budgets) == {"default", "long"}


def test_every_preset_that_the_page_names_is_there():
    named = set(re.findall(r"antibody bench (lab-[a-z-]+)", PAGE)) | set(re.findall(r"`(paper-[a-z]+)`", PAGE))
    assert named <= set(presets())
    assert {name for name in presets() if name.startswith("paper-")} <= named
