"""Matrix files: what is refused, with file, key and the nearest name; what a name alone means."""

import pytest

from antibody_llm.bench.matrix_file import find_matrix, make_matrix, presets, read_matrix
from antibody_llm.errors import AntibodyError, ConfigError

SMALL = {"defences": ["sft", "booster"], "attacks": ["mixing"]}


def part(entry, stage):
    return getattr(make_matrix(SMALL | {"defences": ["sft", entry]}, "m.yaml").defences[1], stage).name


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("booster", ("booster", "sft", "none")),
        ("bds", ("sft", "bds", "none")),
        ("antidote", ("sft", "sft", "antidote")),
        ("antibody", ("antibody", "antibody", "none")),
        ("oracle", ("sft", "oracle", "none")),
    ],
)
def test_a_defence_s_name_alone_is_that_defence_in_every_stage_that_has_one(name, stages):
    assert tuple(part(name, stage) for stage in ("alignment", "finetuning", "post")) == stages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"defences": ["sft", "boster"]},
            r"m.yaml: defences\[1\]: no defence is called 'boster'; did you mean 'booster'",
        ),
        ({"attacks": ["mixin"]}, r"m.yaml: attacks\[0\]: no attack is called 'mixin'; did you mean 'mixing'"),
        ({"attack": ["mixing"]}, r"m.yaml: 'attack': no such key; did you mean 'attacks'"),
        ({"defences": [{"name": "x", "finetuning": "booster"}]}, r"defences\[0\].finetuning: no finetuning defence"),
        ({"defences": [{"name": "x", "finetunin": "bds"}]}, r"defences\[0\]: 'finetunin': no such key; did you mean"),
        ({"defences": [{"alignment": "sft"}]}, r"m.yaml: defences\[0\]: name is missing"),
        ({"defences": [{"name": "x", "finetuning": {"name": "lisa", "options": {"roh": 1}}}]}, "did you mean 'rho'"),
        ({"attacks": [{"attack": "few-shot", "options": {"shots": 1000}}]}, r"attacks\[0\]: few-shot.shots is 1000"),
        (
            {"defences": ["sft", "lisa"], "attacks": ["reverse-dpo"]},
            r"m.yaml: defences\[1\]: reverse-dpo poisons pairs, and 'lisa' was never measured on them",
        ),
        ({"poison_ratios": [1.5]}, "m.yaml: poison_ratios: 1.5 is not a share"),
        ({"poison_ratios": [0.0001]}, "0.0001 of 500 rows is not one row"),
        ({"attacks": [{"attack": "mixing", "poison_ratios": [2]}]}, r"attacks\[0\].poison_ratios: 2.0 is not a share"),
        ({"poison_ratios": "much"}, "m.yaml: poison_ratios is 'much'"),
        ({"defences": ["booster"]}, "m.yaml: baseline: no defence of this matrix is called 'sft'"),
        ({"defences": ["sft", "sft"]}, "m.yaml: defences: 'sft' is there twice"),
        ({"budgets": {"long": {"epoch": 20}}}, "budgets.long: 'epoch': no such key; did you mean 'epochs'"),
        ({"budgets": {"long": {"epochs": 0}}}, "budgets.long: epochs is 0.0: it must be above 0"),
        ({"regime": "half"}, "m.yaml: regime"),
        ({"seeds": 0}, "m.yaml: seeds: at least one"),
        ({"seeds": [1, 1]}, "m.yaml: seeds: 1 is there twice"),
        ({"rows": 0}, "m.yaml: rows is 0"),
        ({"attacks": []}, "m.yaml: attacks: there is none. Give at least one"),
        ({"tasks": []}, "m.yaml: tasks: there is none"),
        ({"budgets": {}}, "m.yaml: budgets: there is none"),
        ({"attacks": [{"attack": "mixing", "poison_ratios": []}]}, r"attacks\[0\].poison_ratios: there is none"),
        ({"tasks": ["novel", "novel"]}, "m.yaml: tasks: 'novel' is there twice"),
        ({"defences": ["sft", {"name": ""}]}, "m.yaml: defences: a name is empty"),
        ({"budgets": {" ": {"epochs": 1}}}, "m.yaml: budgets: a name is empty"),
        ({"defences": "sft"}, "m.yaml: defences is 'sft': it must be a list"),
        ({"attacks": {"mixing": 1}}, "m.yaml: attacks is .*: it must be a list"),
        ({"budgets": ["long"]}, "m.yaml: budgets is .*: it must be a mapping of keys to values"),
        ({"answer": "exactly"}, "m.yaml: answer rule 'exactly': no such rule; did you mean 'exact'"),
        ({"seeds": 10**12}, "m.yaml: seeds is 1000000000000: at most 10000"),
        ({"seeds": [-1]}, "m.yaml: seed is -1"),
        (
            {"defences": ["sft", {"name": "x", "finetuning": {"name": "lisa", "training": {"max_step": 1}}}]},
            r"defences\[1\].finetuning: training.max_step: SFTConfig has no such field; did you mean 'max_steps'",
        ),
        (
            {"defences": ["sft", {"name": "x", "finetuning": {"name": "oracle", "training": {"max_steps": "few"}}}]},
            r"defences\[1\].finetuning: training.max_steps is 'few'",
        ),
        ({"budgets": {"b": {"training": {"packing": True}}}}, "budgets.b: training.packing cannot be set to True"),
        ({"budgets": {"b": {"training": {"learning_rate": 5}}}}, "budgets.b: learning_rate is 5.0: it must be above 0"),
        (
            {"published": [{"defence": "x", "attack": "mixng", "harmful_score": 0.1, "source": "x", "read": "P"}]},
            r"published\[0\]: attack: no attack of this matrix is called 'mixng'; did you mean 'mixing'",
        ),
        ({"defences": ["sft", {"name": "x", "post": {"name": "antidote", "training": {"max_steps": 1}}}]}, "a repair"),
        ({"published": [{"defence": "sft", "harmful_score": 0.1, "source": "x", "read": "Q"}]}, "it must be P, R or S"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_the_nearest_name(wrong, message):
    with pytest.raises(ConfigError, match=message):
        make_matrix(SMALL | wrong, "m.yaml")


def test_a_preset_is_found_by_its_name_with_or_without_folder_and_ending():
    assert find_matrix("lab-core") == find_matrix("presets/lab-core.yaml") == find_matrix("lab-core.yaml")
    with pytest.raises(ConfigError, match="did you mean 'lab-core'"):
        find_matrix("lab-cor")


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_matrix_that_can_be_run(name):
    matrix = read_matrix(name)
    assert matrix.title != name
    named = {defence.name for defence in matrix.defences}
    assert {each.defence for each in matrix.published} <= named


def test_lab_core_is_as_large_as_it_promises():
    matrix = read_matrix("lab-core")
    assert len(matrix.defences) >= 8
    assert len(matrix.attacks) >= 6
    assert all(len(attack.poison_ratios) >= 3 for attack in matrix.attacks)
    assert len(matrix.seeds) >= 3


def test_what_is_no_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "m.yaml").write_text("defences: [sft\nattacks: [")
    with pytest.raises(AntibodyError, match="m.yaml, line 2"):
        read_matrix(str(tmp_path / "m.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(AntibodyError, match="empty.yaml: the file is empty. Write its keys"):
        read_matrix(str(tmp_path / "empty.yaml"))
    (tmp_path / "list.yaml").write_text("- sft")
    with pytest.raises(AntibodyError, match="list.yaml: a mapping"):
        read_matrix(str(tmp_path / "list.yaml"))
