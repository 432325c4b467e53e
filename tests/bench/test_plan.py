"""The cells of a matrix: what is shared, and what changes a digest."""

import json
from dataclasses import replace

import pytest

from antibody_llm.bench.matrix_file import make_matrix, read_matrix
from antibody_llm.bench.order import Order
from antibody_llm.bench.plan import Maker, Turned, make_plan
from antibody_llm.bench.settings import BudgetEntry
from antibody_llm.defences.finetuning.lisa import Lisa
from antibody_llm.errors import AntibodyError, ConfigError
from antibody_llm.lab.rows import build_rows

SMALL = {
    "defences": ["sft", "lisa", "antibody"],
    "attacks": ["mixing", "backdoor"],
    "poison_ratios": [0.1, 0.2],
    "seeds": 2,
}


def plan(**changed):
    return make_plan(make_matrix(SMALL | changed, "m.yaml"))


def rows_of(kind, num):
    return "".join(json.dumps(row) + "\n" for row in build_rows(kind, num, seed=0).rows)


def keys(of):
    return {job.key for job in of.jobs}


def test_an_alignment_is_one_job_for_all_cells_that_need_it():
    jobs = plan().jobs
    assert [job.kind for job in jobs] == ["alignment"] * 4 + ["cell"] * 24  # sft and antibody, two seeds
    assert {job.needs for job in jobs if job.kind == "cell"} == set(jobs[:4])


def test_a_defence_s_label_and_the_other_cells_do_not_change_a_digest():
    renamed = plan(defences=[{"name": "nothing"}, "lisa"], baseline="nothing", title="other", poison_ratios=[0.2, 0.3])
    assert len(keys(renamed) & keys(plan())) == 2 + 2 * 2 * 2  # alignments; two defences, two attacks, two seeds at 0.2


@pytest.mark.parametrize(
    "changed",
    [
        {"prompts": 10},
        {"rows": 400},
        {"threads": 2},
        {"budgets": {"long": {"epochs": 20}}},
        {"tasks": ["novel"]},
        {"judge": "keywords"},
        {"purpose": "calibrate"},
        {"dtype": "bfloat16"},
    ],
)
def test_whatever_decides_a_cell_s_numbers_changes_its_digest(changed):
    before = {job.key for job in plan().jobs if job.kind == "cell"}
    assert not before & keys(plan(**changed))


def test_a_defence_whose_numbers_changed_is_measured_again_and_no_other(monkeypatch):
    before = keys(plan())
    monkeypatch.setattr(Lisa, "about", replace(Lisa.about, revision=1))
    assert len(keys(plan()) - before) == 2 * 2 * 2  # attacks, poison ratios, seeds


def test_an_attack_on_pairs_trains_on_pairs_and_leaves_the_other_cells_as_they_are():
    defences = ["sft", {"name": "ours", "finetuning": "antibody-posterior"}]
    alone, both = (
        plan(defences=defences, attacks=["mixing"]),
        plan(defences=defences, attacks=["mixing", "reverse-dpo"]),
    )
    assert keys(alone) < keys(both)
    methods = {cell.attack: cell.job.config.get("method") for cell in both.cells}
    assert methods == {"mixing": None, "reverse-dpo": "dpo"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"defences": ["sft", {"name": "x", "finetuning": "antibody-posterior"}]}, None),
        (
            {"defences": ["sft", {"name": "x", "alignment": "none", "finetuning": "antibody-posterior"}]},
            "m.yaml: x: antibody-posterior reads anchors, and lab carries none. Give the defence an alignment",
        ),
        (
            {"defences": ["sft", {"name": "x", "alignment": "none"}], "attacks": ["adaptive"]},
            "m.yaml: x: adaptive reads anchors, and lab carries none",
        ),
        (
            {
                "model": "lab-aligned",
                "defences": ["sft", {"name": "x", "alignment": "none", "finetuning": "antibody-posterior"}],
            },
            None,
        ),
    ],
)
def test_what_reads_anchors_needs_a_model_that_has_or_gets_some(changed, said):
    if said is None:
        assert plan(**changed).cells
        return
    with pytest.raises(ConfigError, match=said):
        plan(**changed)


def test_an_unknown_task_finds_the_nearest_under_the_key_of_the_file():
    said = "m.yaml: tasks: task: there is no task 'noval' in the lab; did you mean 'novel'"
    with pytest.raises(ConfigError, match=said):
        plan(tasks=["noval"])


def test_what_concerns_cells_alone_leaves_the_alignments_as_they_are():
    before = {job.key for job in plan().jobs if job.kind == "alignment"}
    assert before <= keys(plan(rows=100, prompts=10, attacks=["few-shot"]))


def test_an_option_written_out_is_the_same_cell_as_the_calibration_that_it_repeats():
    written = plan(
        defences=["sft", {"name": "lisa", "finetuning": {"name": "lisa", "options": {"rho": 0.01}}}, "antibody"]
    )
    assert keys(written) == keys(plan())


def test_a_model_as_it_is_needs_no_alignment():
    as_it_is = plan(model="lab-aligned", defences=[{"name": "sft", "alignment": "none"}])
    assert {job.kind for job in as_it_is.jobs} == {"cell"}


def test_the_slice_has_24_cells_on_two_alignments():
    kinds = [job.kind for job in make_plan(read_matrix("lab-slice")).jobs]
    assert (kinds.count("cell"), kinds.count("alignment")) == (24, 2)


def test_a_model_that_brings_no_rows_needs_files_and_a_judge(tmp_path, tiny_llama_folder):
    with pytest.raises(ConfigError, match="m.yaml: data is missing: .* brings no rows"):
        plan(model=str(tiny_llama_folder))
    files = {}
    for key in ("data", "attack_data", "harmful_prompts", "test_data"):
        files[key] = str(tmp_path / f"{key}.jsonl")
        (tmp_path / f"{key}.jsonl").write_text(rows_of("user", 8))
    with pytest.raises(ConfigError, match="m.yaml: judge is missing"):
        plan(model=str(tiny_llama_folder), **files)
    made = plan(model=str(tiny_llama_folder), judge="keywords", **files)
    assert len(made.cells) == 24
    with pytest.raises(ConfigError, match="tasks are those of the lab"):
        plan(model=str(tiny_llama_folder), judge="keywords", tasks=["novel"], **files)
    before = keys(made)
    (tmp_path / "test_data.jsonl").write_text(rows_of("user", 9))
    cells = {job.key for job in made.jobs if job.kind == "cell"}
    again = keys(plan(model=str(tiny_llama_folder), judge="keywords", **files))
    assert not cells & again
    assert before - cells <= again


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "/nowhere/at/all"}, "m.yaml: model"),
        ({"tasks": ["strange"]}, "m.yaml: tasks"),
        ({"judge": "labb"}, "m.yaml: .*did you mean 'lab'"),
        (
            {"data": "/no/file.jsonl", "attack_data": "x", "harmful_prompts": "x", "test_data": "x"},
            "data: /no/file.jsonl",
        ),
        ({"data": "rows.jsonl"}, "m.yaml: attack_data is missing"),
    ],
)
def test_what_a_plan_cannot_be_made_of_is_named_with_file_and_key(wrong, message):
    with pytest.raises(AntibodyError, match=message):
        plan(**wrong)


def test_a_row_that_cannot_be_used_is_refused_before_any_cell(tmp_path):
    (tmp_path / "refusals.jsonl").write_text(rows_of("alignment", 2) + '{"messages": []}\n')
    with pytest.raises(ConfigError, match=r"m.yaml: alignment_data: .*refusals.jsonl, line 3"):
        plan(alignment_data=str(tmp_path / "refusals.jsonl"))


# What was stored of a cell is found by its configuration: a key more, and every result of a matrix would be lost.
CELL_KEYS = {
    *("versions", "model", "regime", "finetuning", "post", "attack", "poison_ratio", "rows", "prompts", "sets"),
    *("provided", "judge", "answer", "max_new_tokens", "batch_size", "threads", "seed"),
}


def turned(**changed):
    matrix = make_matrix(SMALL, "m.yaml")
    return Maker(matrix).cell(
        matrix.defences[0], matrix.attacks[0], 0.1, BudgetEntry(), "familiar", 0, Turned(**changed)
    )


def test_a_cell_in_which_nothing_is_turned_is_the_cell_of_the_matrix():
    cell = plan().jobs[-24]
    assert cell.config.keys() == CELL_KEYS
    assert turned().key == cell.key
    as_it_is = {"rows": 500, "prompts": 200, "purpose": "report", "regime": "full", "asking": {}}
    assert turned(**as_it_is).key == cell.key


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": 100},
        {"prompts": 128},
        {"purpose": "calibrate"},
        {"regime": "lora"},
        {"order": Order.FIRST},
        {"asking": {"bare": True}},
    ],
)
def test_whatever_is_turned_changes_the_cell_and_not_its_alignment(changed):
    cell = turned(**changed)
    assert cell.key != turned().key
    assert cell.needs == turned().needs
    assert cell.config.keys() - CELL_KEYS == changed.keys() & {"order", "asking"}
