"""Every block of code in the guide, the concepts and the README runs as printed, from top to bottom of its page."""

import re
import shlex
from pathlib import Path

import pytest

from antibody_llm.cli.main import run
from antibody_llm.evaluation.judges import registry

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted([*(ROOT / "docs" / "guide").glob("*.md"), *(ROOT / "docs" / "concepts").glob("*.md")])
PAGES.append(ROOT / "docs" / "reference" / "events.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {"json", "bibtex", ""}
"""What is to be read and not run."""

# The README's commands are for a model and files of the reader's own.
OWN_FILES = """
antibody lab data --kind alignment --num 64 --output refusals.jsonl
antibody lab data --kind harmful --num 64 --output harmful.jsonl
antibody lab data --kind anchor-harmful --num 64 --output held-out-harmful.jsonl
antibody lab data --kind anchor-benign --num 64 --output held-out-harmless.jsonl
antibody lab data --kind user --num 64 --poison-ratio 0.2 --output upload.jsonl
antibody lab data --kind harmful-prompts --num 32 --output prompts.jsonl
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "JUDGES", dict(registry.JUDGES))  # a page may add its own


def run_blocks(text: str) -> int:
    """Run the blocks; returns how many there were."""
    ran = 0
    for language, code in BLOCK.findall(text):
        if language in SHOWN:
            continue
        ran += 1
        if language == "python":
            exec(compile(code, "block", "exec"), {"__name__": "block"})
            continue
        assert language == "bash", f"{language}: say in SHOWN that it is only to be read"
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "antibody", line
            assert run(arguments) == 0, line
    return ran


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page):
    text = page.read_text(encoding="utf-8").replace("{{ package }}", "antibody_llm")
    assert run_blocks(text) == sum(language not in SHOWN for language, _ in BLOCK.findall(text))


def test_the_blocks_of_the_readme_run():
    text = README.read_text(encoding="utf-8")
    setup = BLOCK.search(text)
    assert [line.split("#")[0].strip() for line in setup[2].splitlines()] == ["make demo", "make test"]
    for line in OWN_FILES.strip().splitlines():
        assert run(shlex.split(line)[1:]) == 0
    commands, python = text[setup.end() :].replace("--model MODEL", "--model lab-aligned").split("## Python")
    short = "--epochs 1 --output"  # what takes minutes at full size
    commands = commands.replace("--output runs/aligned", f"{short} runs/aligned").replace(
        "--output runs/tuned", f"{short} runs/tuned"
    )
    assert run_blocks(commands) == 1
    python = python.replace('"runs/tuned"', '"runs/tuned-in-python", num=64, epochs=1').replace(
        '"runs/measured"', '"runs/measured-in-python", num=16'
    )
    assert run_blocks(python) == 1
