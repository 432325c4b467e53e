"""The trainer's configuration, and in what precision the weights are loaded for it."""

import pytest
import torch

from antibody.defences.catalogue import CATALOGUE
from antibody.runs.settings import default_training, make_training_config
from antibody.runs.train import _weights_dtype


def test_bf16_is_the_default_of_a_gpu_save_where_a_perturbation_would_be_rounded_away(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_training()["bf16"]
    assert not default_training(exact=True)["bf16"]


def test_bf16_may_be_asked_for_and_then_it_is_said_what_it_costs(tmp_path, caplog):
    assert make_training_config(tmp_path, {"bf16": True}, seed=0).bf16
    assert not caplog.records
    assert make_training_config(tmp_path, {"bf16": True}, seed=0, exact=True).bf16
    assert "rounds away a part" in caplog.text


@pytest.mark.parametrize(
    ("regime", "bf16", "dtype"),
    [("full", True, "float32"), ("full", False, "float32"), ("lora", True, "auto"), ("lora", False, "float32")],
)
def test_weights_that_are_trained_are_float32_and_frozen_ones_as_the_passes(tmp_path, regime, bf16, dtype):
    assert _weights_dtype(regime, make_training_config(tmp_path, {"bf16": bf16}, seed=0)) == dtype


def test_defences_of_small_perturbations_say_so():
    twins = {name for (_, name), cls in CATALOGUE.items() if cls.twin_passes}
    assert twins == {"antibody", "booster", "panacea", "seam", "t-vaccine", "tar", "vaccine"}
    assert not CATALOGUE["finetuning", "antibody"].twin_passes
