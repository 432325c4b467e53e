"""The README's picture and tables are what their scripts make of the committed results."""

import json
import re

import pytest

import readme_picture
import readme_tables
from antibody_llm.bench.defences_report import markdown

README = readme_tables.ROOT / "README.md"


def test_the_picture_is_what_the_results_say():
    results = json.loads(readme_picture.RESULTS.read_text(encoding="utf-8"))
    assert readme_picture.picture(results) == readme_picture.PICTURE.read_text(encoding="utf-8")


def test_the_text_in_place_of_the_picture_has_its_numbers():
    results = json.loads(readme_picture.RESULTS.read_text(encoding="utf-8"))
    (alt,) = re.findall(r"^!\[(.*)\]\(docs/img/headline.svg\)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert alt == readme_picture.described(readme_picture.bars(results))


PAGES = [README, *(readme_tables.ROOT / "docs" / name for name in ("scale.md", "serving.md", "guide/immunization.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_what_the_catalogue_and_the_results_say(page):
    assert readme_tables.main(["--check", "--file", str(page)]) == 0


def test_a_number_that_was_typed_is_noticed(tmp_path):
    file = tmp_path / "README.md"
    text = README.read_text(encoding="utf-8")
    (number, *_) = re.findall(r"[\d.]+ / [\d.]+ \|", text)
    file.write_text(text.replace(number, "12.3 / 45.6 |"), encoding="utf-8")
    assert readme_tables.main(["--check", "--file", str(file)]) == 1
    assert readme_tables.main(["--file", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == text


def test_a_picture_with_a_seed_that_is_missing_is_not_drawn():
    results = json.loads(readme_picture.RESULTS.read_text(encoding="utf-8"))
    headline = next(row for row in results["rows"] if row["headline"])
    fewer = {"rows": [row for row in results["rows"] if row is not headline]}
    with pytest.raises(AssertionError):
        readme_picture.picture(fewer)


def test_the_page_of_defences_is_that_of_its_results_and_lists_differences_once_there_are_two():
    results, old = readme_tables.defences_results(), readme_tables.WHOLE_WORLD
    before = json.loads(old.read_text(encoding="utf-8")) if readme_tables.DEFENCES.exists() else None
    page = readme_tables.ROOT / "docs" / "defences.md"
    assert markdown(results, before) == page.read_text(encoding="utf-8")
