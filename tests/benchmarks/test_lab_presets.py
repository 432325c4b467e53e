"""Which setting of a defence is chosen, by hand-made figures; no model is trained."""

import pytest
from benchmarks.lab_presets import BASELINE, ROOT, Tried, chosen, first_that_keeps, read, table

from antibody_llm.bench.matrix_file import read_matrix
from antibody_llm.lab.presets import PRESETS


def tried(harm, accuracy=(1.0, 1.0), refusal=(0.0, 0.0), *, defence="lisa", setting="rho 1"):
    return Tried(defence, setting, (harm, harm), accuracy, refusal, prompts=256, questions=144)


UNDEFENDED = tried(0.9, defence=BASELINE, setting="")


def test_the_lowest_harm_is_chosen_where_today_s_interval_does_not_reach_it():
    today, better, best = tried(0.5), tried(0.3), tried(0.1)
    assert chosen([today, better, best], UNDEFENDED) is best


def test_today_s_setting_stays_where_its_interval_reaches_the_best():
    today, other = tried(0.04), tried(0.02)  # Wilson's interval of 10 in 256 begins at 0.021
    assert chosen([today, other], UNDEFENDED) is other
    assert chosen([tried(0.03), other], UNDEFENDED).harm == 0.03  # 8 in 256: from 0.016 on


def test_a_setting_that_loses_a_task_or_refuses_the_harmless_is_not_chosen():
    today = tried(0.5)
    assert chosen([today, tried(0.1, (1.0, 0.97))], UNDEFENDED) is today
    assert chosen([today, tried(0.1, refusal=(0.0, 0.11))], UNDEFENDED) is today
    assert chosen([tried(0.5, (1.0, 0.2)), usable := tried(0.6)], UNDEFENDED) is usable


def test_harmless_questions_count_as_refused_beyond_the_limit_where_the_interval_says_so():
    few, many = tried(0.1, refusal=(0.0, 0.0625)), tried(0.1, refusal=(0.0, 0.11))  # 9 of 144: from 0.033 on
    assert few.keeps(UNDEFENDED)
    assert not many.keeps(UNDEFENDED)  # 16 of 144: from 0.070 on


def test_a_setting_that_defends_nothing_is_not_chosen_and_today_s_stays_where_none_is_left():
    today, nothing = tried(0.4, (1.0, 0.0)), tried(0.88)  # 225 of 256: up to 0.914, beyond 0.9's beginning
    assert chosen([today, nothing], UNDEFENDED) is today


def test_a_learning_rate_has_to_keep_the_tasks_and_no_more():
    today, other = tried(0.1, (1.0, 0.98)), tried(0.0)
    assert first_that_keeps([today, other], UNDEFENDED) is today
    assert first_that_keeps([tried(0.1, (1.0, 0.9)), other], UNDEFENDED) is other


def test_rows_are_grouped_by_defence_and_a_failed_cell_is_refused():
    def row(name, task, harm, error=None):
        figures = {"harmful_score": harm, "finetune_accuracy": 1.0, "over_refusal": 0.0}
        return {"defence": name, "task": task, "prompts": 256, "error": error, **figures}

    names = ("sft", "lisa: rho 0.01", "lisa: rho 1")
    rows = [row(name, task, harm) for name, harm in zip(names, (0.9, 0.5, 0.1), strict=True) for task in "fn"]
    assert [(each["setting"], each["chosen"]) for each in table(read(rows))] == [
        *(("", True), ("rho 0.01", False), ("rho 1", True))
    ]
    with pytest.raises(ValueError, match="lisa: rho 1, n: OSError"):
        read([*rows, row("lisa: rho 1", "n", None, "OSError: full")])


def test_the_matrix_is_of_the_half_to_choose_by_and_names_today_s_settings_first():
    matrix = read_matrix(str(ROOT / "benchmarks" / "lab_presets.yaml"))
    assert matrix.settings.purpose == "calibrate"
    assert matrix.defences[0].name == BASELINE
    assert all(": " in each.name for each in matrix.defences[1:])


def test_what_the_matrix_calls_today_s_setting_is_that_of_the_lab():
    seen = set()
    for each in read_matrix(str(ROOT / "benchmarks" / "lab_presets.yaml")).defences[1:]:
        defence = each.name.partition(": ")[0]
        if defence not in seen:
            seen.add(defence)
            for stage in ("alignment", "finetuning", "post"):
                part = getattr(each, stage)
                known = PRESETS.get((stage, part.name, "full"), {"options": {}})["options"]
                assert part.options.items() <= known.items()
