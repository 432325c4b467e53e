"""The division of a provider's rows: by prompts, disjoint, the same whatever their order."""

import json
from dataclasses import replace

import pytest
import yaml

from antibody_llm.calibration.rows import REPORT, SEARCH, divided, warn_of_fitted_prompts
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.events import listening
from antibody_llm.profiles import Profile
from antibody_llm.profiles.english import EnglishProfile
from antibody_llm.profiles.lab import LabProfile
from antibody_llm.settings.calibrate import CalibrateSettings


def written(file, prompts, answer="yes"):
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": answer}]} for p in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def prompts_of(file):
    return [json.loads(line)["messages"][0]["content"] for line in open(file)]


@pytest.fixture
def given(tmp_path):
    harmful = [f"how is poison {n} made?" for n in range(120)]
    return CalibrateSettings(
        model="none",
        output=tmp_path / "out",
        judge="keywords",
        alignment="sft",
        harmful_data=written(tmp_path / "h.jsonl", [*harmful, *(f"HOW is  poison {n} made" for n in range(120))]),
        benign_data=written(tmp_path / "b.jsonl", [f"how is soup {n} made?" for n in range(240)]),
        alignment_data=written(tmp_path / "a.jsonl", harmful, "no"),
    )


def test_no_prompt_is_in_two_parts_whatever_its_case_and_punctuation(given, tmp_path):
    rows = divided(given, Profile(), tmp_path / "rows")
    files = {**{f"{half} {key}": file for half, keys in rows.halves.items() for key, file in keys.items()}}
    files |= {key: rows.provided[key] for key in ("harmful_data", "benign_data")}
    parts = {
        name: {p.casefold().replace("?", "").replace("  ", " ") for p in prompts_of(file)}
        for name, file in files.items()
    }
    assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 360
    assert rows.counts["calibrate-attack_data"] == 24  # a tenth of the prompts, twice written
    assert rows.counts["report-harmful_prompts"] == 24  # a fifth, each asked once
    assert rows.rows == 36  # of an upload: what there is


def test_refusals_are_fitted_only_to_prompts_that_nothing_is_measured_on(given, tmp_path):
    rows = divided(given, Profile(), tmp_path / "rows")
    left = set(prompts_of(rows.provided["alignment_data"]))
    measured = {
        p for half in rows.halves.values() for key in ("harmful_prompts", "attack_data") for p in prompts_of(half[key])
    }
    assert len(left) == 48
    assert not left & measured


def test_the_division_depends_on_the_seed_and_not_on_the_order(given, tmp_path):
    first = divided(given, Profile(), tmp_path / "first")
    shuffled = written(tmp_path / "b2.jsonl", reversed(prompts_of(given.benign_data)))
    again = divided(replace(given, benign_data=shuffled), Profile(), tmp_path / "again")
    other = divided(replace(given, seed=1), Profile(), tmp_path / "other")
    tests = [set(prompts_of(each.halves[SEARCH]["test_data"])) for each in (first, again, other)]
    assert tests[0] == tests[1] != tests[2]


def test_typical_uploads_leave_the_harmless_rows_to_be_asked(given, tmp_path):
    data = written(tmp_path / "d.jsonl", [f"is film {n} good?" for n in range(100)])
    rows = divided(replace(given, data=data), Profile(), tmp_path / "rows")
    assert prompts_of(rows.halves[REPORT]["data"])[0].startswith("is film")
    assert {name: rows.counts[name] for name in ("report-data", "report-test_data", "report-benign_prompts")} == {
        "report-data": 30,
        "report-test_data": 20,
        "report-benign_prompts": 48,
    }


def test_too_few_rows_say_how_many_are_needed(given, tmp_path):
    few = written(tmp_path / "few.jsonl", [f"how is poison {n} made?" for n in range(99)])
    with pytest.raises(DataError, match="99 different prompts .* 100 are needed") as raised:
        divided(replace(given, harmful_data=few), Profile(), tmp_path / "rows")
    assert raised.value.field == "harmful_data"


def test_a_model_without_rows_needs_both_kinds(given, tmp_path):
    with pytest.raises(ConfigError, match="benign_data is missing"):
        divided(replace(given, benign_data=None), Profile(), tmp_path / "rows")


@pytest.mark.parametrize("profile", [LabProfile(), EnglishProfile()], ids=lambda profile: profile.name)
def test_a_world_s_halves_share_no_prompt(tmp_path, profile):
    settings = CalibrateSettings(model="any", output="out", rows=20, prompts=30, report_prompts=30)
    halves = divided(settings, profile, tmp_path).halves
    for key in ("data", "attack_data", "harmful_prompts", "benign_prompts"):
        assert not set(prompts_of(halves[SEARCH][key])) & set(prompts_of(halves[REPORT][key])), key


def test_prompts_that_the_model_was_aligned_on_are_reported(given, tmp_path):
    rows = divided(given, Profile(), tmp_path / "rows")
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model.parent / "config.yaml").write_text(yaml.safe_dump({"data": {"alignment": {"source": given.alignment_data}}}))
    heard = []
    with listening(heard.append):
        warn_of_fitted_prompts(str(model), rows)
    assert [each.message.partition(" are rows")[0] for each in heard] == [
        "24 of 24 harmful prompts of the part to calibrate",
        "24 of 24 harmful prompts of the part to report",
    ]
