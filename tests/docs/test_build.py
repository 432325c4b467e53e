"""What ``docs/build.py`` does to a page before the generator reads it."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_has_its_name_in_one_place(build, monkeypatch):
    monkeypatch.setattr(build, "PACKAGE", "renamed")
    assert build.prepared("::: {{ package }}.runs.align", ".", None) == "::: renamed.runs.align"


def test_a_link_that_leaves_the_docs_becomes_text_or_a_link_into_the_repository(build):
    page = "see [the results](../benchmarks/results/evidence.json)"
    assert build.prepared(page, ".", None) == "see the results"
    there = "https://example.org/x/blob/main/benchmarks/results/evidence.json"
    assert build.prepared(page, ".", "https://example.org/x/") == f"see [the results]({there})"


def test_a_dead_link_is_left_for_the_generator_to_find(build):
    for page in ("[gone](../no/such/file.py)", "[gone](no-such-page.md)", "[web](https://example.org)"):
        assert build.prepared(page, ".", None) == page


def test_the_home_page_is_the_readme_with_its_links_turned(build):
    page = build.prepared("{{ readme }}", ".", None)
    assert "](guide/own-data.md)" in page
    assert "](img/headline.svg)" in page
    assert "](docs/" not in page
    assert "](src/" not in page


def test_every_defence_has_its_options_in_the_reference(build):
    from antibody_llm.defences.catalogue import CATALOGUE

    page = build.prepared("{{ defences }}", "reference", None)
    for (stage, name), defence in CATALOGUE.items():
        assert f"## {name} ({stage})\n\n::: {defence.__module__}\n" in page


def test_every_setting_of_every_verb_is_in_the_reference(build):
    from antibody_llm.settings import SETTINGS, fields_of

    page = build.prepared("{{ verbs }}", "reference", None)
    for verb, settings in SETTINGS.items():
        section = page.partition(f"## {verb}\n")[2].partition("\n## ")[0]
        assert all(f"- **`{field.name}`** (`" in section for field in fields_of(settings))
    assert "- **`options`** (`--set`, default `None`): Option of the defence." in page
    assert "- **`data`** (`DATA`, required): The upload" in page


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    missing = [str(page) for page in pages if f": {page.as_posix()}\n" not in navigation]
    assert missing == []
