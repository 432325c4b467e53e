import json
from dataclasses import replace

import pytest

import memory
from antibody_llm.data.roles import Stage

STORED = json.loads((memory.RESULTS / "memory.json").read_text(encoding="utf-8"))


def test_the_stored_needs_of_devices_are_what_the_model_says_now():
    assert STORED["fits"] == memory.fitting()
    assert STORED["gpu"] == memory.on_the_gpu()


def test_the_model_is_within_a_sixth_of_every_measured_peak():
    for row in (*STORED["cpu"], *STORED["gpu"]):
        assert row["ratio"] == pytest.approx(1, abs=1 / 6), row["name"]


def test_a_shape_counts_the_weights_of_llama():
    assert memory.LLAMAS["8 B"].weights == 8_030_261_248
    assert memory.LLAMAS["1 B"].weights == 1_235_814_400


def test_the_peak_of_a_small_step_is_that_of_the_model():
    step = memory.Step(memory.SMALL, rows=8, length=96, completion=48, lora=8)
    said = memory.expected(step)
    peak = memory.measured(step, Stage.FINETUNING, "sft", {})
    assert (said["held"] + said["pass"]) / peak == pytest.approx(1, abs=0.05)


def test_ranks_share_out_weights_and_moments_but_not_activations():
    step = memory.Step(memory.LLAMAS["8 B"], rows=4, length=1024, completion=512, half=True, checkpointing=True)
    one, eight = memory.expected(step), memory.expected(replace(step, ranks=8))
    assert eight["weights"] == pytest.approx(one["weights"] / 8)
    assert eight["optimiser"] == pytest.approx(one["optimiser"] / 8)
    assert one["gathered"] == 0 < eight["gathered"]
