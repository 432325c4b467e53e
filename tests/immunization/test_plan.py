"""From settings to jobs: what is planned, what two models share, what is refused and how."""

import json

import pytest

from antibody_llm.errors import AntibodyError
from antibody_llm.immunization.plan import checkpoints, make_plan
from antibody_llm.immunization.rows import CROSS, IN_DOMAIN, attack_rows, harmful_sets, reference_rows
from antibody_llm.lab.world import CROSS_CATEGORIES
from antibody_llm.settings.immunization import ImmunizationSettings

LAB = {"world": "lab", "purpose": "report"}


def plan_of(**changed):
    return make_plan(ImmunizationSettings(**({"model": "lab", "defended": "lab-aligned"} | changed)))


def test_the_preset_of_the_lab_is_three_rates_three_row_counts_two_regimes_and_three_seeds_of_each_model():
    plan = plan_of()
    attacks = plan.of("defended", "attack")
    assert len(attacks) == len(plan.of("model", "attack")) == 3 * 3 * 2 * 3
    assert len(plan.of("defended", "task")) == 2 * 3
    assert len(plan.jobs) == len(plan.runs)
    assert attacks[0].job.config["training"]["max_steps"] == attacks[0].job.config["checkpoints"][-1] == 64


def test_two_names_of_one_model_share_every_job():
    plan = plan_of(model="lab-aligned")
    assert {run.job for run in plan.runs if run.which == "model"} == set(plan.jobs)


def test_a_model_alone_is_attacked_and_compared_with_nothing():
    plan = plan_of(defended=None, seeds=1)
    assert {run.part for run in plan.runs} == {"start", "attack"}
    assert {run.which for run in plan.runs} == {"model"}


def test_a_job_depends_on_what_it_reads_alone():
    def keys(part, **changed):
        return [run.job.key for run in plan_of(seeds=1, **changed).of("defended", part)]

    assert keys("attack", task="agnews") == keys("attack")
    assert keys("task", task="agnews") != keys("task")
    assert keys("task", steps=32) == keys("task")
    assert keys("start", steps=32) == keys("start")
    assert keys("attack", steps=32) != keys("attack")
    assert keys("attack", purpose="calibrate") != keys("attack")


def test_checkpoints_are_three_to_an_octave_and_end_with_the_last_step():
    assert checkpoints(20) == [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20]
    assert checkpoints(7) == [1, 2, 3, 4, 5, 6, 7]
    assert checkpoints(1) == [1]


def test_no_prompt_is_among_the_attacker_s_rows_and_cross_prompts_are_of_kinds_that_they_lack():
    rows = attack_rows(LAB, {}, 96, seed=0)
    asked = {row["messages"][0]["content"] for row in rows}
    sets = harmful_sets(LAB, {}, 200)
    prompts = {name: {record.messages[0].content for record in records} for name, records in sets.items()}
    assert len(asked) == len(rows) == 96
    assert not asked & (prompts[IN_DOMAIN] | prompts[CROSS])
    assert len(prompts[IN_DOMAIN]) > 48 < len(prompts[CROSS])
    assert all(any(kind in prompt for kind in CROSS_CATEGORIES) for prompt in prompts[CROSS])
    assert not any(kind in text for kind in CROSS_CATEGORIES for text in asked | prompts[IN_DOMAIN])
    assert all(len(record.messages) == 2 for record in sets[CROSS])


def test_the_rows_of_the_task_end_with_their_answers():
    rows = reference_rows(LAB, {}, "sst2")
    assert len(rows) == 200
    assert len({record.messages[1].content for record in rows}) == 2  # the classes of that task


def test_another_seed_draws_other_rows():
    assert attack_rows(LAB, {}, 16, seed=0) != attack_rows(LAB, {}, 16, seed=1)
    assert attack_rows(LAB, {}, 16, seed=1) == attack_rows(LAB, {}, 16, seed=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": (16, 0)}, "rows: give at least one, each above 0"),
        ({"learning_rates": ()}, "learning_rates: give at least one"),
        ({"learning_rates": (float("nan"),)}, "learning_rates: give at least one, each above 0"),
        ({"regimes": ("full", "adapter")}, "regimes: 'adapter': give full or lora, or both"),
        ({"regimes": ()}, "regimes: none: give full or lora"),
        ({"steps": 0}, "steps is 0: it must be 1 or more"),
        ({"seeds": 0}, "seeds is 0: it must be 1 or more"),
        ({"margin": 1.0}, "margin is 1.0: it must be 0 or more and below 1"),
        ({"judge": "lap"}, "did you mean 'lab'"),
        ({"task": "sst3"}, "there is no task 'sst3'"),
        ({"model": "./nothing/here"}, "nothing/here"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(changed, message):
    with pytest.raises(AntibodyError) as caught:
        plan_of(**changed)
    assert message in caught.value.spelled(lambda name, value: name)


@pytest.fixture
def files(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        return str(tmp_path / name)

    turns = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": "so."}]
    return {
        "attack_data": write("attack.jsonl", [turns] * 8),
        "harmful_prompts": write("prompts.jsonl", [turns[:1]] * 2),
    }


def test_a_model_that_brings_no_rows_needs_files_and_a_judge(tiny_llama_folder, files):
    def refused(**given):
        with pytest.raises(AntibodyError) as caught:
            make_plan(ImmunizationSettings(model=tiny_llama_folder, **given))
        return caught.value.spelled(lambda name, value: name)

    assert "brings no rows. Give attack_data and harmful_prompts, and for trainability data and test_data" in refused()
    assert "harmful_prompts is missing: attack_data is given" in refused(attack_data=files["attack_data"])
    assert "brings no judge. Give judge" in refused(rows=(8,), **files)
    assert "100 rows are to be drawn, and it has 8. Lower rows" in refused(judge="keywords", rows=(100,), **files)
    assert "task chooses among the lab's tasks" in refused(judge="keywords", rows=(8,), task="sst2", **files)
    assert "no such file" in refused(judge="keywords", rows=(8,), **(files | {"cross_prompts": "gone.jsonl"}))


def test_models_of_different_worlds_cannot_be_compared_on_rows_that_only_one_brings(tiny_llama_folder):
    with pytest.raises(AntibodyError) as caught:
        plan_of(defended=tiny_llama_folder)
    assert "bring different rows (lab and none)" in caught.value.spelled(lambda name, value: name)
