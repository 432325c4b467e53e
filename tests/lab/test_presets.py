from antibody_llm.lab.presets import ALIGNMENT_ROWS, HARMFUL_PROMPTS, PRESETS, USER_ROWS
from antibody_llm.lab.rows import build_rows


def test_every_stage_and_regime_has_the_undefended_baseline_and_antibody_on_one_training_budget():
    for stage in ("alignment", "finetuning"):
        for regime in ("full", "lora"):
            sft, antibody = (PRESETS[stage, defence, regime] for defence in ("sft", "antibody"))
            assert sft["training"] == antibody["training"]
            assert sft["options"] == {}


def test_the_world_holds_the_rows_the_presets_name():
    assert len(build_rows("alignment", ALIGNMENT_ROWS, seed=0).rows) == ALIGNMENT_ROWS
    assert len(build_rows("user", USER_ROWS, seed=0, poison_ratio=0.2).rows) == USER_ROWS
    assert len(build_rows("harmful-prompts", HARMFUL_PROMPTS, seed=0).rows) == HARMFUL_PROMPTS
