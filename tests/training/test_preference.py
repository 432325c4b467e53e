"""DPO: the equation, whole steps, resuming, and the reference."""

import copy
import math
import random

import datasets
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from antibody_llm.errors import ConfigError, TrainingError
from antibody_llm.models.adapters import add_lora, trainable_parameters
from antibody_llm.training.checkpoints import load_run_state
from antibody_llm.training.preference import METRICS, PreferenceTrainer, dpo_loss
from tests.tinylm import plain_nll, random_rows, tiny_llama, tiny_tokenizer
from tests.training.helpers import weights

BETA = 0.7


def make_pairs(num=22, seed=1):
    """Preferred rows, and the same prompts with other answers."""
    rows, others = random_rows(num, seed=seed), random_rows(num, seed=seed + 100)
    rejected = []
    for row, other in zip(rows, others, strict=True):
        prompt, (start, end) = row.input_ids[: row.spans[0][0]], other.spans[0]
        answer = other.input_ids[start:end]
        span = (len(prompt), len(prompt) + len(answer))
        rejected.append(type(row)(row.row_id, (*prompt, *answer), (span,), row.template))
    return rows, rejected


ROWS, REJECTED = make_pairs()


def adapted(seed=0):
    return add_lora(tiny_llama(), r=4, alpha=8, targets=["q_proj", "v_proj"], seed=seed)


def config(folder, **overrides):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "beta": BETA,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return DPOConfig(**settings | overrides)


def trainer(folder, model=None, *, left_out=(), kind=PreferenceTrainer, **overrides):
    return kind(
        tiny_llama() if model is None else model,
        config(folder, **overrides),
        rows={"user": ROWS},
        rejected=REJECTED,
        left_out=left_out,
        processing_class=tiny_tokenizer(),
    )


def plain_log_prob(model, row):
    return -plain_nll(model, row.input_ids, *row.spans[0])


def plain_loss(model, reference, rows, rejected, beta=BETA):
    """Eq. 7 of the paper, a pair at a time, with no helper of ours or TRL's."""
    losses = []
    for row in rows:
        other = rejected[row.row_id]
        with torch.no_grad():
            ref = plain_log_prob(reference, row) - plain_log_prob(reference, other)
        margin = plain_log_prob(model, row) - plain_log_prob(model, other) - ref
        losses.append(-torch.log(torch.sigmoid(beta * margin)))
    return torch.stack(losses).mean()


def test_the_loss_by_hand():
    log_probs = torch.tensor([[-3.0, -5.0], [-2.0, -1.0]])
    reference = torch.tensor([[-4.0, -5.0], [-2.0, -3.0]])
    # d = (1, 0) and (0, 2): margins 1 and -2.
    wanted = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(1.0))) / 2
    assert float(dpo_loss(log_probs, reference, 0.5)) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["full", "new adapter", "adapter that goes on"])
def test_two_steps_are_those_of_the_equation_in_plain_pytorch_with_the_start_as_reference(tmp_path, kind):
    model = tiny_llama() if kind == "full" else adapted()
    if kind == "adapter that goes on":  # then the base is not the model that training starts from
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(1))
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    run = trainer(tmp_path, model, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", max_steps=2)
    order = [row for cut in run.get_train_dataloader() for row in cut.rows]
    run.train()
    params = list(trainable_parameters(twin).values())
    losses = []
    for step in (order[:8], order[8:16]):
        loss = plain_loss(twin, start, step, REJECTED)
        losses.append(float(loss.detach()))
        for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
            p.data -= 1e-2 * g
    assert losses[0] == pytest.approx(math.log(2))
    assert abs(losses[1] - math.log(2)) > 1e-3
    assert [entry["loss"] for entry in run.state.log_history[:2]] == pytest.approx(losses, abs=1e-5)
    assert [name for name, _ in run.model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    for name, p in twin.named_parameters():
        assert_close(weights(run)[name], p.detach(), atol=1e-6, rtol=1e-5)


def test_metrics_are_the_means_of_the_equation_s_rewards(tmp_path):
    start = tiny_llama()
    run = trainer(tmp_path, optim="sgd", max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    order = [row for cut in run.get_train_dataloader() for row in cut.rows][16:22]  # the third step has six pairs
    before = {}

    class Keep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                before.update(weights(run))

    run.add_callback(Keep())
    run.train()
    model, pairs = tiny_llama(), [(row, REJECTED[row.row_id]) for row in order]
    model.load_state_dict(before, strict=False)  # tied weights come once
    with torch.no_grad():
        rewards = torch.tensor(
            [[BETA * (plain_log_prob(model, row) - plain_log_prob(start, row)) for row in pair] for pair in pairs]
        )
    margins = rewards[:, 0] - rewards[:, 1]
    wanted = [*rewards.mean(dim=0), (margins > 0).float().mean(), margins.mean()]
    logged = run.state.log_history[2]
    assert [logged[name] for name in METRICS] == pytest.approx([float(value) for value in wanted], abs=1e-4)
    assert not {"num_tokens", "entropy"} & set(logged)


def test_a_step_of_the_same_pairs_is_trl_s_own(tmp_path):
    run = trainer(tmp_path / "a", adapted(), max_steps=2)
    order = [row for cut in run.get_train_dataloader() for row in cut.rows][:16]
    run.train()
    start = [row.spans[0][0] for row in order]
    columns = {
        "prompt_ids": [list(row.input_ids[:at]) for row, at in zip(order, start, strict=True)],
        "chosen_ids": [list(row.input_ids[at:]) for row, at in zip(order, start, strict=True)],
        "rejected_ids": [list(REJECTED[row.row_id].input_ids[at:]) for row, at in zip(order, start, strict=True)],
    }

    class Stock(DPOTrainer):
        def _prepare_dataset(self, dataset, *others):
            return dataset

        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    stock = Stock(
        model=adapted(),
        args=config(tmp_path / "b", max_steps=2),
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=tiny_tokenizer(),
    )
    stock.train()
    theirs = {name: p.detach() for name, p in stock.model.named_parameters() if ".ref." not in name}
    for name, p in theirs.items():
        assert_close(weights(run)[name], p, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("cut", [(2, 4), (1, 8)])
def test_eight_pairs_are_two_times_four_also_where_the_last_step_is_smaller(tmp_path, cut):
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    whole = trainer(tmp_path / "a", **settings)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=cut[0], gradient_accumulation_steps=cut[1], **settings)
    whole.train()
    parts.train()
    assert whole.state.global_step == parts.state.global_step == 6  # 8 + 8 + 6 in each of two epochs
    for key, value in weights(whole).items():
        assert_close(value, weights(parts)[key], atol=2e-6, rtol=1e-5)
    for a, b in zip(whole.state.log_history[1:6], parts.state.log_history[1:6], strict=True):  # margins are 0 at first
        assert [a[name] for name in ("loss", *METRICS)] == pytest.approx(
            [b[name] for name in ("loss", *METRICS)], abs=1e-4
        )


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_resumed_at_a_random_step_ends_with_bitwise_the_same_weights_and_metrics(tmp_path, kind):
    def made(folder):
        model = adapted() if kind == "lora" else None
        more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "logging_steps": 2}
        return trainer(folder, model, left_out=(30, 41), save_strategy="steps", save_steps=1, **more)

    whole = made(tmp_path / "a")
    whole.train()
    stop = random.randrange(1, 6)
    again = made(tmp_path / "b")
    again.train(resume_from_checkpoint=tmp_path / "a" / f"checkpoint-{stop}")
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items()), f"resumed at {stop}"
    ours = ["loss", "step", *METRICS]
    first, second = (
        [{name: entry.get(name) for name in ours} for entry in run.state.log_history if "loss" in entry]
        for run in (whole, again)
    )
    assert first == second, f"resumed at {stop}"
    state = load_run_state(tmp_path / "a" / f"checkpoint-{stop}")
    assert state["defence.left_out"].tolist() == [30, 41]
    assert not list((tmp_path / "a").rglob("ref/adapter_model.safetensors"))


def test_a_reference_that_is_not_the_starting_model_stops_the_run_with_both_numbers(tmp_path):
    class Other(PreferenceTrainer):
        def log_probs(self, micro):
            return super().log_probs(micro) - torch.tensor([0.5, 0.0])

    with pytest.raises(TrainingError, match=r"is 0\.4740\d\d, and log 2 = 0\.693147"):
        trainer(tmp_path, kind=Other).train()


def test_a_loss_of_trl_s_that_is_another_one_stops_the_run_with_both_numbers(tmp_path):
    class Other(PreferenceTrainer):
        def _compute_loss(self, model, inputs, return_outputs):
            return 2 * super()._compute_loss(model, inputs, return_outputs)

    with pytest.raises(
        TrainingError, match=r"TRL's loss of 4 pairs is 0\.4028\d\d, and in plain PyTorch it is 0\.2014"
    ):
        trainer(tmp_path, kind=Other).train()


def test_what_a_step_must_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="save_only_model"):
        trainer(tmp_path, save_only_model=True)


def test_dropout_is_off_so_that_policy_and_reference_are_one_function(tmp_path):
    model = add_lora(tiny_llama(), r=4, targets=["q_proj"], dropout=0.5, seed=0)
    run = trainer(tmp_path, model, max_steps=1)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2))


def test_the_plain_loss_is_torch_s():
    margin = torch.tensor([0.3, -2.0])
    assert_close(dpo_loss(torch.stack([margin, 0 * margin], 1), torch.zeros(2, 2), 1.0), -F.logsigmoid(margin).mean())
