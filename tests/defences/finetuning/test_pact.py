"""PACT against its equations: tokens, gate and target by hand, and the update row by row in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import TokenizedRow
from antibody_llm.defences.finetuning.pact import PACT, PACTConfig, num_holding, safety_tokens, target
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, shifted, token_log_probs, token_logits
from tests.tinylm import random_rows, step, tiny_llama

USER = random_rows(6, seed=1, num_turns=2, longest=14)
SAFE = random_rows(7, seed=2)
OPTIONS = {"lam": 0.5, "num_tokens": 8, "num_positions": 3}


def begun(model, base, **options):
    context = StepContext(model, rows={"user": USER, "alignment": SAFE}, batch_size=3, base=base)
    defence = PACT(PACTConfig(**{**OPTIONS, **options}))
    defence.start(context)
    return context, defence


def test_safety_tokens_are_the_likeliest_of_the_aligned_model_weighed_by_how_much_it_raised_them():
    aligned, before = torch.tensor([0.1, 0.4, 0.2, 0.3]), torch.tensor([0.1, 0.1, 0.5, 0.2])
    tokens, w = safety_tokens(aligned, before, 3)
    assert tokens.tolist() == [1, 3, 2]  # risen by .3, .1, -.3
    risen = torch.tensor([0.3, 0.1, -0.3])
    assert_close(w, (risen - risen.mean()) / risen.std())
    assert len(safety_tokens(aligned, before, 50)[0]) == 4


def test_the_mass_of_the_safety_tokens_is_counted_from_the_likeliest_down():
    p = torch.tensor([[0.95, 0.03, 0.02], [0.5, 0.45, 0.05], [0.4, 0.3, 0.3]])
    assert num_holding(p.log()).tolist() == [1, 2, 3]


def test_the_target_mixes_logits_and_has_no_mass_where_alignment_lowered_a_token():
    full, alone = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[4.0, 2.0, 0.0]])
    w = torch.tensor([1.0, 3.0, -2.0])
    q = target(full, alone, torch.tensor([0.5]), w, 2.0)  # all logits 2
    assert_close(q, torch.tensor([[0.25, 0.75, 0.0]]))
    assert_close(target(full, alone, torch.tensor([0.0]), torch.ones(3), 2.0), (full / 2).softmax(-1))
    assert_close(target(full, alone, torch.tensor([1.0]), torch.ones(3), 2.0), (alone / 2).softmax(-1))


def mean_probabilities(model):
    parts = [token_logits(model, row)[:3].softmax(-1) for row in SAFE]
    return torch.cat(parts).mean(dim=0).detach()


def objective(model, aligned, base):
    """CE + lam T^2 KL, token by token."""
    after, before = mean_probabilities(aligned), mean_probabilities(base)
    tokens = after.argsort(descending=True)[:8]
    risen = (after - before)[tokens]
    w = ((risen - risen.mean()) / risen.std()).clamp(min=0)
    total, num = 0.0, 0
    for row in USER:
        total = total - token_log_probs(model, row).sum()
        for start, end in row.spans:
            whole = TokenizedRow(0, row.input_ids[:end], ((start, end),), row.template)
            short = TokenizedRow(0, row.input_ids[start - 1 : end], ((1, end - start + 1),), row.template)
            z = token_logits(model, whole)[:, tokens]
            a, b = token_logits(aligned, whole)[:, tokens].detach(), token_logits(aligned, short)[:, tokens].detach()
            for t in range(end - start):
                mine, theirs = (
                    int((x[t].softmax(-1).sort(descending=True).values.cumsum(0) < 0.9).sum()) for x in (z, a)
                )
                c = 1 / (1 + torch.exp(torch.tensor(-2.0 * (mine - theirs)))) * 2 ** (-max(t - 8, 0) / 8)
                q = w * (((1 - c) * a[t] + c * b[t]) / 2).softmax(-1)
                q = q / q.sum()
                log_p = (z[t] / 2).log_softmax(-1)
                some = q > 0
                total = total + 0.5 * 4 * (q[some] * (q[some].log() - log_p[some])).sum()
            num += end - start
    return total / num


def test_after_a_shift_the_update_is_autograds_of_the_equation_token_by_token():
    model, base = tiny_llama(), tiny_llama(seed=9)
    aligned = copy.deepcopy(model)
    context, defence = begun(model, base)
    shifted(model, 0.05)
    result = defence.step(context, {"user": step(USER, 4)})
    loss = objective(model, aligned, base)
    assert any(end - start > 9 for row in USER for start, end in row.spans)  # where c has begun to decay
    assert result.loss == pytest.approx(loss.item(), rel=1e-4)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(result.gradients), expected, atol=2e-5, rtol=1e-3)
    assert defence.reference.weights  # the aligned model, not the one that trains
    assert not torch.allclose(expected, gradient(model, USER), atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"lam": -1.0}, {"temperature": 0.0}, {"num_tokens": 1}, {"num_prompts": 0}, {"num_positions": 0}]
)
def test_numbers_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"pact.{next(iter(options))}"):
        PACTConfig(**options)
