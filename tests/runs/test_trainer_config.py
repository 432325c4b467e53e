"""The trainer's configuration, and in what precision the weights are loaded for it."""

from dataclasses import fields

import pytest
import torch
from trl import DPOConfig, SFTConfig

from antibody_llm.defences.catalogue import CATALOGUE
from antibody_llm.errors import ConfigError
from antibody_llm.mentions import in_python, spelled
from antibody_llm.runs.train import _weights_dtype
from antibody_llm.runs.trainer_config import (
    HONOURED,
    REFUSED,
    RESERVED,
    _default,
    check_seed,
    default_training,
    make_training_config,
    parse_training,
    stored_training,
)


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
    twins = {
        name for (_, name), cls in CATALOGUE.items() if getattr(cls, "twin_passes", False)
    }  # a repair takes no step
    assert twins == {"antibody", "booster", "gradshield", "panacea", "seam", "t-vaccine", "tar", "vaccine"}
    assert not CATALOGUE["finetuning", "antibody"].twin_passes


FIELDS = {field.name: (kind, field) for kind in (DPOConfig, SFTConfig) for field in fields(kind)}


def test_every_field_of_sftconfig_and_dpoconfig_is_honoured_or_refused_or_has_a_flag():
    refused = [name for names in REFUSED.values() for name in names]
    assert sorted([*HONOURED, *refused, *RESERVED]) == sorted(FIELDS)
    assert set(HONOURED) <= {field.name for field in fields(DPOConfig)} & {field.name for field in fields(SFTConfig)}


def test_beta_makes_the_configuration_one_of_dpo_with_its_own_default_rate(tmp_path):
    config = make_training_config(tmp_path, {}, seed=0, beta=0.25)
    assert isinstance(config, DPOConfig)
    assert (config.beta, config.learning_rate, config.loss_type) == (0.25, 1e-6, ["sigmoid"])
    assert isinstance(make_training_config(tmp_path, {}, seed=0), SFTConfig)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="beta is .* it must be above 0") as caught:
            make_training_config(tmp_path, {}, seed=0, beta=beta)
        assert caught.value.field == "beta"


# One value for each field, other than its default; ddp_backend needs several processes, and tf32 a GPU.
SET = {
    "num_train_epochs": 2.0,
    "max_steps": 7,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_length": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine_with_restarts",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 3,
    "optim": "sgd",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.9,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.5,
    "bf16": True,
    "use_cpu": True,
    "full_determinism": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "logging_strategy": "epoch",
    "logging_steps": 5,
    "logging_first_step": True,
    "report_to": ["none"],
    "run_name": "a",
    "save_strategy": "no",
    "save_steps": 5,
    "save_total_limit": 3,
    "ddp_timeout": 60,
}


@pytest.mark.parametrize("name", SET)
def test_a_field_that_is_honoured_arrives_and_is_stored(tmp_path, name):
    extra = {"lr_scheduler_type": "cosine_with_restarts"} if name == "lr_scheduler_kwargs" else {}
    if name == "lr_scheduler_type":
        extra = {"lr_scheduler_kwargs": {"num_cycles": 1}}
    config = make_training_config(tmp_path, {name: SET[name]} | extra, seed=0)
    if name not in ("report_to", "run_name"):
        assert stored_training(config)[name] == SET[name]
    assert stored_training(config).keys() <= set(HONOURED)


@pytest.mark.parametrize("name", [name for names in REFUSED.values() for name in names])
def test_a_field_that_is_refused_says_why_and_its_default_may_be_written_out(name):
    (why,) = [why for why, names in REFUSED.items() if name in names]
    kind, field = FIELDS[name]
    with pytest.raises(ConfigError) as caught:
        parse_training({name: "\x1b[1mother"}, kind)
    assert str(caught.value) == f"training.{name} cannot be set to '\\x1b[1mother': {spelled(why, in_python)}."
    assert parse_training({name: _default(field)}, kind) == {}


BAD: dict[str, object] = {
    "adam_beta1": 5,
    "adam_beta2": 1,
    "adam_epsilon": 0,
    "learning_rate": True,
    "lr_scheduler_kwargs": {"wrong": 1},
    "optim": "lomo",
    "optim ": "sgd",
    "optim_args": "momentum=0.9",
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "logging_steps": "inf",
    "save_steps": 1.5,
    "save_strategy": "best",
    "save_only_model": True,
    "warmup_steps": -1,
    "report_to": "wandb",
    "push_to_hub": True,
    "eval_strategy": "steps",
    "fsdp": "full_shard",
    "deepspeed": "ds.json",
    "ddp_timeout": 10**20,
    "ddp_backend": "gloo",  # for one process
    "max_steps": 10**12,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "activation_checkpointing_kwargs": "x",
    "tf32": True,
    "neftune_noise_alpha": 5,
    "x" * 10**6: 1,
}


@pytest.mark.parametrize("name", BAD, ids=lambda name: name[:30])
def test_a_value_that_the_trainer_would_stumble_over_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, name):
    monkeypatch.setattr("antibody_llm.runs.trainer_config.get_available_reporting_integrations", list)
    if name == "tf32" and torch.cuda.is_available():
        pytest.skip("a GPU may have it")
    with pytest.raises(ConfigError, match="training|learning_rate") as caught:
        make_training_config(tmp_path, {name: BAD[name]}, seed=0)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["constant", "constant_with_warmup"])
def test_a_schedule_that_takes_no_arguments_refuses_them(tmp_path, kind):
    with pytest.raises(ConfigError, match="takes none"):
        make_training_config(tmp_path, {"lr_scheduler_type": kind, "lr_scheduler_kwargs": {"a": 1}}, seed=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("cosine_with_min_lr", None),
        ("polynomial", {"lr_end": 1}),
        ("polynomial", {"power": "x"}),
        ("warmup_stable_decay", None),
        ("cosine", {"num_cycles": [1]}),
        ("linear", {"a": 1}),
    ],
)
def test_a_schedule_that_cannot_be_made_is_refused(tmp_path, kind, options):
    with pytest.raises(ConfigError, match="training"):
        make_training_config(tmp_path, {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options}, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**100])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    with pytest.raises(ConfigError, match="seed is"):
        check_seed(seed)
