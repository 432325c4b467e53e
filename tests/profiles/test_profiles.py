"""What a model brings by default, and which models bring it."""

import json

import pytest

from antibody_llm.data.roles import Role, Stage
from antibody_llm.errors import ConfigError
from antibody_llm.evaluation.judges.registry import JUDGES
from antibody_llm.lab.build import FILES
from antibody_llm.lab.presets import PRESETS
from antibody_llm.profiles import Choice, Profile, profile_of
from antibody_llm.profiles.english import EnglishProfile
from antibody_llm.profiles.lab import EVALUATION_KINDS, LabProfile


def test_a_model_that_nobody_described_brings_nothing(tiny_llama_folder):
    profile = profile_of(str(tiny_llama_folder))
    assert type(profile) is Profile
    assert all(profile.rows(role, Choice(), seed=0) is None for role in Role)
    assert profile.calibration(Stage.FINETUNING, "antibody", "lora") == ({}, {})
    assert (profile.refusals, profile.judges, profile.max_new_tokens) == (None, (), None)


@pytest.mark.parametrize("profile", [LabProfile(), EnglishProfile()], ids=lambda profile: profile.name)
def test_a_world_brings_rows_of_every_role_and_evaluation_set(profile):
    for kind in (*Role, *EVALUATION_KINDS):
        brought = profile.rows(kind, Choice(num=4), seed=1)
        assert brought is not None, kind
        assert len(brought.records) == 4
        assert "seed=1" in brought.name


def test_a_choice_of_task_and_share_is_for_the_upload_alone():
    choice = Choice(num=8, task="novel", poison_ratio=0.25)
    named = {kind: LabProfile().rows(kind, choice, seed=0).name for kind in (Role.USER, Role.HARMFUL, "test_data")}
    assert named[Role.USER] == "lab user rows (num=8, seed=0, task=sst2-novel, poison_ratio=0.25)"
    assert named[Role.HARMFUL] == "lab harmful rows (num=8, seed=0)"
    assert named["test_data"] == "lab test rows (num=8, seed=0, task=sst2-novel)"


def test_the_labs_calibration_replaces_the_papers_and_an_unknown_defence_trains_as_plain_sft_does():
    options, training = LabProfile().calibration(Stage.FINETUNING, "antibody", "lora")
    assert options == PRESETS[("finetuning", "antibody", "lora")]["options"]
    assert (
        training["per_device_train_batch_size"] == PRESETS[("finetuning", "antibody", "lora")]["training"]["batch_size"]
    )
    assert LabProfile().calibration(Stage.FINETUNING, "of-ones-own", "lora") == (
        {},
        LabProfile().calibration(Stage.FINETUNING, "sft", "lora")[1],
    )


def test_a_profile_names_judges_that_exist():
    assert {*LabProfile.judges, *EnglishProfile.judges} <= set(JUDGES)


def test_a_purpose_halves_the_lab_s_uploads_and_evaluations_and_is_named():
    whole, half, other = (
        LabProfile().rows("harmful_prompts", Choice(purpose=purpose), seed=0)
        for purpose in (None, "calibrate", "report")
    )
    assert "purpose" not in whole.name
    assert half.name == "lab harmful-prompts rows (num=256, seed=0, purpose=calibrate)"
    parts = [{record.messages for record in source.records} for source in (whole, half, other)]
    assert not parts[1] & parts[2]
    assert parts[1] | parts[2] == parts[0]
    refusals = [
        LabProfile().rows(Role.ALIGNMENT, Choice(num=8, purpose=p), seed=0).records for p in (None, "calibrate")
    ]
    assert refusals[0] == refusals[1]


def test_the_english_profile_s_evaluations_are_for_reported_figures_unless_asked_otherwise():
    assert "purpose=report" in EnglishProfile().rows("test_data", Choice(num=4), seed=0).name
    assert "purpose=calibrate" in EnglishProfile().rows(Role.USER, Choice(num=4, purpose="calibrate"), seed=0).name
    assert "purpose" not in EnglishProfile().rows(Role.HARMFUL, Choice(num=4), seed=0).name


@pytest.mark.parametrize(("task", "rule"), [("gsm8k-familiar", "gsm8k"), ("novel", "exact"), (None, "exact")])
def test_the_rule_for_answers_follows_the_task(task, rule):
    assert LabProfile().answer(task) == rule


def test_what_descends_from_the_lab_has_its_profile(tmp_path):
    def descendant(name, base):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "antibody.json").write_text(json.dumps({"base": base}))
        return str(folder)

    assert profile_of("lab").name == profile_of(str(FILES / "lab-aligned")).name == "lab"
    assert profile_of(descendant("tuned", descendant("aligned", "lab"))).name == "lab"
    english = tmp_path / "english"
    english.mkdir()
    (english / "config.json").write_text("{}")
    (english / "antibody.json").write_text(json.dumps({"profile": "english"}))
    assert profile_of(descendant("english-aligned", str(english))).name == "english"
    around = str(tmp_path / "other")
    assert profile_of(descendant("other", around)).name == "none"


def test_what_only_a_profiles_rows_can_obey_is_refused_beside_a_file():
    Choice().refuse("m")
    with pytest.raises(ConfigError, match="poison_ratio chooses among the rows") as refused:
        Choice(poison_ratio=0.2).refuse("m")
    assert refused.value.field == "poison_ratio"
