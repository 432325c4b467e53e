"""The rules of DESIGN, section 2, over the whole catalogue."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_defence
from antibody_llm.training.step import StepContext
from tests.defences.cases import ACTIVE, IDS, TRAINED
from tests.defences.two_ranks import GRIDS, SETTINGS
from tests.tinylm import random_refusals, step, tick, tiny_llama
from tests.training.helpers import ROWS, made_anchors, trainer, weights

every = pytest.mark.parametrize(("stage", "name"), TRAINED, ids=IDS)
plain_somewhere = [key for key in TRAINED if CATALOGUE[key].neutral is not None]
ROOT = Path(__file__).parents[2]
NOT_OURS = {"epoch", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
"""What the Trainer logs of clocks, and of epochs, which it counts in micro-batches."""


def test_every_entry_has_a_case_here_and_says_what_it_is():
    assert set(ACTIVE) == set(CATALOGUE)
    for (stage, _), cls in CATALOGUE.items():
        assert cls.stage is stage
        assert cls.about.summary
        assert cls.neutral is not None or "not plain SFT" in (sys.modules[cls.__module__].__doc__ or "")


@pytest.mark.parametrize(("stage", "name"), plain_somewhere)
def test_neutral_options_are_plain_sft_bit_for_bit_after_three_steps(tmp_path, stage, name):
    neutral = CATALOGUE[stage, name].neutral
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    ours = trainer(tmp_path / "a", make_defence(stage, name, neutral), **settings)
    plain = trainer(tmp_path / "b", make_defence(stage, "sft"), **settings)
    ours.train()
    plain.train()
    assert all(torch.equal(v, weights(plain)[k]) for k, v in weights(ours).items())
    assert ours.defence.deployment == plain.defence.deployment


@pytest.mark.parametrize(("stage", "name"), [key for key in TRAINED if key[1] != "sft"])
def test_active_options_do_something_that_plain_sft_does_not(tmp_path, stage, name):
    ours = trainer(tmp_path / "a", make_defence(stage, name, ACTIVE[stage, name]), max_steps=3)
    plain = trainer(tmp_path / "b", make_defence(stage, "sft"), max_steps=3)
    ours.train()
    plain.train()
    moved = any(not torch.allclose(v, weights(plain)[k], atol=1e-5) for k, v in weights(ours).items())
    assert moved or ours.defence.deployment != plain.defence.deployment  # or its model is prompted otherwise


def _bare_step(stage, name, model, fails_at=None):
    """Steps outside a trainer; returns the number of forward passes, the last of which raises if ``fails_at`` says."""
    defence = make_defence(stage, name, ACTIVE[stage, name])
    before = tiny_llama(seed=9)
    base = before if defence.needs_base else None
    anchors = made_anchors(model, before) if defence.needs_anchors else None
    context = StepContext(model, rows=ROWS, refusals=random_refusals(), batch_size=4, base=base, anchors=anchors)
    tick(context, max_steps=10)
    defence.start(context)
    num_forwards = 0

    def count(module, args, output):
        nonlocal num_forwards
        num_forwards += 1
        if num_forwards == fails_at:
            raise RuntimeError(f"forward {fails_at} failed")

    hook = model.register_forward_hook(count)
    try:
        with nullcontext() if fails_at is None else pytest.raises(RuntimeError, match=f"forward {fails_at} failed"):
            defence.step(context, {role: step(rows[:6], 3) for role, rows in ROWS.items()})
    finally:
        hook.remove()
    return num_forwards


@every
def test_a_step_leaves_nothing_behind_whichever_of_its_forwards_fails(stage, name):
    model = tiny_llama()
    next(model.parameters()).requires_grad_(False)  # a flag to keep
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    num_forwards = _bare_step(stage, name, model)
    assert num_forwards >= 2  # of two micro-batches
    _is_as_it_was(model, before, flags)
    for number in range(1, num_forwards + 1):
        _bare_step(stage, name, model, fails_at=number)
        _is_as_it_was(model, before, flags)


def _is_as_it_was(model, before, flags):
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """All defences in one launch of two gloo processes."""
    folder = tmp_path_factory.mktemp("two_ranks")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*launch, str(ROOT / "tests/defences/two_ranks.py"), str(folder)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def _of_one_rank(stage, name, grid):
    """The whole step in one forward pass; in those of the two ranks where it depends on how it is cut."""
    if CATALOGUE[stage, name].batch_exact:
        return {"per_device_train_batch_size": 16}
    size, accumulation = GRIDS[grid]
    return {"per_device_train_batch_size": size, "gradient_accumulation_steps": 2 * accumulation}


@every
@pytest.mark.parametrize("grid", GRIDS)
def test_two_ranks_end_with_the_weights_and_rows_of_one(tmp_path, two_ranks, stage, name, grid):
    defence = make_defence(stage, name, ACTIVE[stage, name])
    whole = trainer(tmp_path, defence, **_of_one_rank(stage, name, grid), **SETTINGS)
    whole.train()
    shared = torch.load(two_ranks / f"{stage}-{name}-{grid}.pt", weights_only=False)
    for key, value in weights(whole).items():
        assert_close(value, shared["weights"][key], atol=1e-6, rtol=1e-5)
    rows = whole.row_log.columns()
    assert rows["row_id"] == shared["rows"]["row_id"]  # once an epoch each, none that was repeated to fill a rank
    assert rows["weight"] == pytest.approx(shared["rows"]["weight"], abs=1e-4)
    for entry, shared_entry in zip(whole.state.log_history, shared["logs"], strict=True):
        logged_here = {key: value for key, value in entry.items() if key not in NOT_OURS}
        assert logged_here == pytest.approx({key: shared_entry[key] for key in logged_here}, abs=1e-4)


def test_two_ranks_stop_together_where_the_first_is_asked_to_and_go_on_to_the_same_bits(two_ranks):
    for rank in (0, 1):
        assert json.loads((two_ranks / f"stopped-{rank}.json").read_text()) == {"step": 2, "same": True}


@every
def test_a_killed_and_resumed_run_ends_bitwise_the_same(tmp_path, stage, name):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    options = ACTIVE[stage, name]
    whole = trainer(tmp_path / "a", make_defence(stage, name, options), save_strategy="steps", save_steps=1, **settings)
    whole.train()
    again = trainer(tmp_path / "b", make_defence(stage, name, options), **settings)
    again.train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-4")
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())
    assert str(again.row_log.columns()) == str(whole.row_log.columns())
    a, b = whole.defence.state(), again.defence.state()
    assert a.keys() == b.keys()
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_dropping_the_truth_beside_the_rows_changes_nothing():
    # Truth never enters a tokenised row at all: there is no field for it.
    fields = set(ROWS["user"][0].__slots__)
    assert fields == {"row_id", "input_ids", "spans", "template"}
    assert Stage.FINETUNING in {stage for stage, _ in CATALOGUE}
