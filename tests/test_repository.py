"""Files around the code agree with it and with each other."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from antibody_llm import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = ROOT / "README.md"


def test_the_commit_hook_formats_with_the_version_that_the_suite_checks_with():
    (pinned,) = [line for line in PROJECT["project"]["optional-dependencies"]["test"] if line.startswith("ruff==")]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (revision,) = [hook["rev"] for hook in hooks if "ruff" in hook["repo"]]
    assert revision == "v" + pinned.removeprefix("ruff==")


def test_the_version_is_written_in_the_package_alone():
    assert "version" not in PROJECT["project"]
    assert "version" in PROJECT["project"]["dynamic"]
    file = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert re.findall(r'^__version__ = "(.*)"$', file.read_text(encoding="utf-8"), re.MULTILINE) == [__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_mypy_is_strict():
    checked = PROJECT["tool"]["mypy"]
    assert checked["strict"]
    assert checked["warn_unreachable"]


def test_the_readme_cites_as_the_citation_file_does():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    entry = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", README.read_text(encoding="utf-8"), re.MULTILINE))
    authors = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    assert (entry["title"], entry["author"], entry["url"]) == (paper["title"], authors, paper["url"])
    assert (entry["booktitle"], entry["year"]) == (paper["collection-title"], str(paper["year"]))


def test_every_python_that_continuous_integration_tries_is_one_that_the_package_allows():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    assert f">={tried[0]}" == PROJECT["project"]["requires-python"]
    commands = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert [command.partition("#")[0].strip() for command in commands] == ["make test"]


LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")


@pytest.mark.parametrize("page", [README, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_a_link_of_a_page_at_the_root_leads_somewhere(page):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if ":" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
