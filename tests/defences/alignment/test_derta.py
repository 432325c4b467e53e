"""DeRTa against its equation, in plain PyTorch."""

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.alignment.derta import DeRTa, DeRTaConfig, any_depth
from antibody_llm.errors import ConfigError
from antibody_llm.primitives.noise import generator_at
from antibody_llm.training.interrupted import interrupted
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, token_logits
from tests.tinylm import random_refusals, random_rows, step, tick, tiny_llama

ALIGNMENT, HARMFUL = random_rows(6, seed=1), random_rows(4, seed=2, num_turns=2)


def taken(**options):
    model, refusals = tiny_llama(), random_refusals()
    context = StepContext(model, refusals=refusals, seed=5)
    tick(context, step=3)
    batches = {"alignment": step(ALIGNMENT, 4), "harmful": step(HARMFUL, 3)}
    return model, refusals, DeRTa(DeRTaConfig(**options)).step(context, batches)


def test_every_token_of_a_harmful_answer_is_to_be_followed_by_the_first_token_of_a_refusal():
    model, refusals, result = taken(mu=0.0, lam=0.5)
    total = 0.0
    for position, row in enumerate(HARMFUL):
        first = refusals.of(row, 3 * 4 + position)[0]
        total = total - token_logits(model, row).log_softmax(-1)[:, first].sum()
    total = total / sum(end - start for row in HARMFUL for start, end in row.spans)
    transition = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
    assert_close(flat(result.gradients), gradient(model, ALIGNMENT) + 0.5 * transition, atol=1e-6, rtol=1e-4)
    assert result.metrics["loss_transition"] == pytest.approx(total.item(), rel=1e-5)


def test_a_refusal_is_learnt_behind_a_prefix_of_the_harmful_answer():
    model, refusals, result = taken(mu=2.0, lam=0.0)
    rows = []
    for position, row in enumerate(HARMFUL):
        start, end = row.spans[-1]
        k = any_depth(end - start - 1, generator_at(5, 3, position))
        rows.append(interrupted(row, refusals.of(row, 3 * 4 + position), k))
    expected = gradient(model, ALIGNMENT) + 2 * gradient(model, rows)
    assert_close(flat(result.gradients), expected, atol=2e-6, rtol=1e-4)


def test_prefixes_have_every_length():
    generator = torch.Generator().manual_seed(0)
    assert {any_depth(3, generator) for _ in range(200)} == {0, 1, 2, 3}


def test_a_negative_weight_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"derta.lam is -1"):
        DeRTaConfig(lam=-1.0)
