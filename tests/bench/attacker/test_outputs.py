"""What a search leaves for readers: files, the page and its pictures."""

import json
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from antibody_llm.bench.attacker.outputs import write_worst_case
from antibody_llm.bench.attacker.pictures import comparison, curves
from antibody_llm.bench.attacker.tables import worst_case_tables
from antibody_llm.errors import TrainingError

from .world import World, as_usual, found, needs_optuna, not_a_number

pytestmark = needs_optuna
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def worst(tmp_path_factory):
    return found(tmp_path_factory.mktemp("search"), budget=6)[1]


def marks(svg, kind):
    return [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == kind]


def words(svg):
    return " ".join(text for each in ElementTree.fromstring(svg).iter(f"{SVG}text") for text in each.itertext())


def test_every_file_is_there_and_the_page_needs_no_other(worst, tmp_path):
    files = write_worst_case(tmp_path, worst, worst_case_tables(worst))
    assert json.loads((tmp_path / "worst_case.json").read_text()) == worst
    assert pq.read_table(files["trials"]).num_rows == 12
    page = (tmp_path / "worst_case.html").read_text()
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "prefers-color-scheme: dark" in page
    assert "6 trials against each of 2 defences" in page
    assert "The owner of the weights wins" in page
    for table in worst_case_tables(worst):
        assert f"<h2>{table.title}</h2>" in page
        assert f"## {table.title}" in (tmp_path / "worst_case.md").read_text()


def test_a_bar_is_as_long_as_the_harm_it_stands_for(worst):
    svg = comparison(worst)
    tracks, bars = marks(svg, "track"), marks(svg, "found")[1:]  # the first one is the key
    shares = [float(bar.get("width")) / float(tracks[0].get("width")) for bar in bars]
    harms = [each["found"][2]["report"]["harm"]["value"] for each in worst["defences"]]
    assert shares == pytest.approx(harms, abs=1e-3)
    assert "sft: 80.0 % by plain mixing" in ElementTree.fromstring(svg).get("aria-label")


def test_the_line_of_a_defence_ends_at_its_maximum_and_every_trial_is_a_dot(worst):
    svg = curves(worst)
    dots = [*marks(svg, "useful"), *marks(svg, "useless")]
    assert len(dots) == 2 + 2 * 6  # two are the key
    for each, line in zip(worst["defences"], marks(svg, "curve")[1:], strict=True):
        assert float(line.get("d").rpartition("V")[2]) == pytest.approx(128 * (1 - each["curve"][-1]), abs=0.1)
    assert "50 % after 1 trial" in words(svg)
    assert "50 % not reached" in words(svg)


def test_the_pictures_say_that_none_passed(tmp_path):
    def useless(config):
        return as_usual(config) | {"accuracy": 0.5 if config["poison_ratio"] else 1.0}

    _, worst = found(tmp_path, World(useless), budget=2)
    assert words(comparison(worst)).count("none passed") == 4
    assert len(marks(curves(worst), "curve")) == 1  # the key
    assert len(marks(curves(worst), "useful")) == 1


def test_a_trial_that_failed_is_no_dot_and_its_error_is_a_column(tmp_path):
    _, worst = found(tmp_path, World(fails=not_a_number), budget=2)
    write_worst_case(tmp_path / "out", worst, worst_case_tables(worst))
    assert len(marks(curves(worst), "useful")) == 1 + 2  # the key, and mixing against each
    errors = pq.read_table(tmp_path / "out" / "trials.parquet")["error"].to_pylist()
    assert errors == [None, "TrainingError: the loss is not a number"] * 2


def test_a_search_that_could_not_begin_leaves_a_page_that_says_why(tmp_path):
    world = World(fails=lambda config: TrainingError("no memory"))
    _, worst = found(tmp_path, world, budget=2)
    assert worst["defences"] == []
    write_worst_case(tmp_path / "out", worst, worst_case_tables(worst))
    page = (tmp_path / "out" / "worst_case.html").read_text()
    assert "TrainingError: no memory" in page
    assert "proves nothing" in page


def test_a_name_from_a_matrix_is_text_in_every_picture(tmp_path):
    _, worst = found(tmp_path, budget=1, defences=["sft", {"name": "<b>&", "finetuning": "lisa"}])
    for svg in (comparison(worst), curves(worst)):
        assert "<b>&" in words(svg)
