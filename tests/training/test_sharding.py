"""Sharded models: a step is that of one process, and what cannot be is refused or found out at the start."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError, TrainingError
from antibody_llm.training.distribution import check_distribution, ranks_state, require_same_ranks
from tests.defences.cases import ACTIVE
from tests.tinylm import tiny_llama
from tests.training.helpers import trainer, weights
from tests.training.sharded_ranks import EXACT, REFUSED, RESUMED, SETTINGS, TRAINED_BY_TRAINER

ROOT = Path(__file__).parents[2]
of_case = pytest.mark.parametrize("case", [" ".join(case) for case in EXACT])


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """What one launch of two gloo processes has found and saved."""
    folder = tmp_path_factory.mktemp("sharded")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "tests.training.sharded_ranks"]
    done = subprocess.run(
        [*launch, str(folder)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert (folder / "left_alone.txt").is_file(), done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def found(folder) -> dict:
    return json.loads((folder / "found.json").read_text())


@of_case
def test_the_gradients_and_weights_of_two_sharded_ranks_are_those_of_one_process(found, case):
    assert max(found["differences"][case]) <= 1e-5


@pytest.mark.parametrize("case", [" ".join(case) for case in RESUMED])
def test_a_sharded_run_resumed_in_new_objects_ends_bitwise_the_same(found, case):
    assert found["resumed"][case]


def test_each_of_two_ranks_holds_half_of_weights_gradients_moments_and_what_the_defence_keeps(found):
    assert set(found["held"]) == {"parameters", "gradients", "optimiser", "defence"}
    assert max(found["held"].values()) <= 1.1 / 2


@pytest.mark.parametrize("key", [" ".join(key) for key in REFUSED])
def test_a_defence_that_needs_whole_weights_is_refused_and_says_what_for(found, key):
    assert "from whole weights, and under FSDP every rank has a part of each" in found["refused"][key]


def test_a_spectral_region_is_refused_and_the_others_are_not():
    spectral = make_defence(Stage.FINETUNING, "safe-region", {"region": "spectral"})
    assert spectral.whole_weights == "singular values"
    assert make_defence(Stage.FINETUNING, "safe-region", {"region": "box"}).whole_weights is None


def test_the_check_at_the_start_stops_with_both_numbers_where_gradients_are_averaged(found):
    text = found["wrong gradient"]
    assert "under FSDP the gradient of" in text
    ours, theirs = (float(text.split(before)[1].split()[0].rstrip(",")) for before in ("has norm ", "without it "))
    assert ours == pytest.approx(theirs / 2, rel=1e-3)


def test_the_check_at_the_start_stops_where_a_perturbation_would_be_lost(found):
    assert "and the next pass computed with norm" in found["lost perturbation"]


def test_an_adapter_that_is_put_on_a_sharded_model_is_refused(found):
    assert "Put the adapter on the model before it is sharded" in found["adapter afterwards"]


def test_a_trainer_that_shards_saves_the_weights_of_one_process(folder, tmp_path):
    saved = AutoModelForCausalLM.from_pretrained(folder / "saved")
    assert type(saved).__name__ == "LlamaForCausalLM"
    plain = _of_one_process(tmp_path)
    for name, value in saved.named_parameters():
        assert_close(value, plain[name], atol=1e-6, rtol=1e-5)


def test_a_trainer_that_shards_an_adapters_model_saves_the_adapter_of_one_process(folder, tmp_path):
    saved = load_file(folder / "saved_adapter" / "adapter_model.safetensors")
    plain = _of_one_process(tmp_path, lora=True)
    assert len(saved) == 8
    for name, value in saved.items():
        assert_close(value, plain[name.replace(".weight", ".default.weight")], atol=1e-6, rtol=1e-5)


def _of_one_process(folder: Path, *, lora: bool = False) -> dict:
    settings = SETTINGS | {"gradient_accumulation_steps": 2 * SETTINGS["gradient_accumulation_steps"]}
    stage, name = TRAINED_BY_TRAINER["lora" if lora else "full"]
    run = trainer(folder, make_defence(stage, name, ACTIVE[stage, name]), lora=lora, **settings)
    run.train()
    return weights(run)


def test_a_trainer_that_shards_and_is_resumed_ends_bitwise_the_same(found):
    assert found["trainer resumed"] == {"full": True, "lora": True}


def test_a_checkpoint_of_another_number_of_processes_is_refused():
    before = {"num_ranks": torch.tensor(4)}
    with pytest.raises(
        TrainingError, match=r"checkpoint-3 was written by 4 processes, and this run has 1:.*Start it with 4 "
    ):
        require_same_ranks(before, "checkpoint-3")
    require_same_ranks(ranks_state(), "checkpoint-3")
    require_same_ranks({}, "of an earlier release")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fsdp_version": 1}, "Set fsdp_version: 2"),
        ({"cpu_offload": CPUOffloadPolicy()}, "fsdp_offload_params"),
        ({"activation_checkpointing": True}, "training.gradient_checkpointing to true"),
        ({"state_dict_type": "FULL_STATE_DICT"}, "SHARDED_STATE_DICT"),
        ({"parallelism_config": object()}, "Take out parallelism_config"),
    ],
)
def test_fsdp_is_refused_in_forms_that_nobody_has_compared(changed, said):
    with pytest.raises(ConfigError, match=said):
        check_distribution(_sharding(**changed), tiny_llama(), on_pairs=False)


def test_fsdp_is_refused_for_pairs_and_for_a_base_in_4_bits():
    with pytest.raises(ConfigError, match=r"training on pairs .* Use DDP"):
        check_distribution(_sharding(), tiny_llama(), on_pairs=True)
    quantised = tiny_llama()
    quantised.is_quantized = True
    with pytest.raises(ConfigError, match=r"a base in 4 bits .* Use DDP"):
        check_distribution(_sharding(), quantised, on_pairs=False)


def test_a_rank_whose_neighbour_is_killed_ends_with_what_to_do(folder):
    text = (folder / "left_alone.txt").read_text()
    assert text.startswith("step 2: another process of this run has ended or cannot be reached")
    assert "Start all 2 processes again with the same command" in text


def test_deepspeed_is_refused():
    with pytest.raises(ConfigError, match="DeepSpeed owns the backward pass"):
        check_distribution(_sharding(deepspeed=True), tiny_llama(), on_pairs=False)


def test_gradients_of_passes_in_bf16_are_summed_in_float32():
    trainer = _sharding(mixed_precision_policy=MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16))
    check_distribution(trainer, tiny_llama(), on_pairs=False)
    policy = trainer.accelerator.state.fsdp_plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def _sharding(*, deepspeed: bool = False, **changed: object) -> SimpleNamespace:
    """As much of a Trainer as is looked at."""
    usual = {"fsdp_version": 2, "cpu_offload": OffloadPolicy(), "activation_checkpointing": False}
    usual |= {"state_dict_type": "SHARDED_STATE_DICT", "mixed_precision_policy": None}
    parallel = changed.pop("parallelism_config", None)
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(**(usual | changed)))
    accelerator = SimpleNamespace(state=state, parallelism_config=parallel)
    return SimpleNamespace(is_deepspeed_enabled=deepspeed, is_fsdp_enabled=True, accelerator=accelerator)
