"""KL to the aligned model against its equation: arithmetic by hand, and the update row by row in plain PyTorch."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Template, TokenizedRow
from antibody_llm.defences.finetuning.kl_to_aligned import (
    KLToAligned,
    KLToAlignedConfig,
    answer_means,
    prompt_means,
    row_share,
)
from antibody_llm.errors import ConfigError
from antibody_llm.primitives.mixture import log_density_ratio
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient, shifted, token_log_probs, token_logits
from tests.tinylm import random_rows, step, tiny_llama
from tests.training.helpers import made_anchors

USER = random_rows(6, seed=1, num_turns=2)


def begun(model, **options):
    anchors = made_anchors(model, tiny_llama(seed=9))
    context = StepContext(model, rows={"user": USER}, batch_size=4, anchors=anchors)
    defence = KLToAligned(KLToAlignedConfig(**options))
    defence.start(context)
    return context, defence


def objective(model, before, lam):
    """(1 - lam) CE + lam KL, summed over the tokens of one row after the other; lam is a function of the row."""
    total = 0.0
    for row in USER:
        p = token_logits(before, row).softmax(-1).detach()
        q = token_logits(model, row).log_softmax(-1)
        kl = (p * (p.log() - q)).sum(-1)
        total = total + ((1 - lam(row)) * -token_log_probs(model, row) + lam(row) * kl).sum()
    return total / sum(end - start for row in USER for start, end in row.spans)


def states(model, row):
    """Output of the second of two layers: the model's last hidden state before the final norm."""
    taken = []
    handle = model.model.layers[1].register_forward_hook(lambda m, a, out: taken.append(out))
    model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    return (taken[0][0] if isinstance(taken[0], tuple) else taken[0]).detach().reshape(len(row.input_ids), -1)


def test_a_grade_of_the_release_gives_its_share_and_no_share_leaves_the_bounds():
    # r = (g - 1) / 4 for g = 1 .. 5; (g - 2) / 3 clipped to .1 and .9.
    found = row_share(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), 0.1, 0.9)
    assert_close(found, torch.tensor([0.1, 0.1, 1 / 3, 2 / 3, 0.9]))


def test_prompts_and_unfinished_answers_have_the_means_of_their_own_states():
    row = TokenizedRow(0, (0,) * 7, ((2, 4), (5, 7)), Template.TEXT)
    x = torch.tensor([1.0, 3.0, 4.0, 8.0, 9.0, 10.0, 14.0])[:, None]
    assert_close(prompt_means(x, row), torch.tensor([[2.0], [5.0]]))
    assert_close(answer_means(x, row), torch.tensor([[4.0], [6.0], [10.0], [12.0]]))


def test_at_the_start_a_constant_share_only_scales_plain_sfts_update():
    model = tiny_llama()
    context, defence = begun(model, risk="constant", lam=0.25)
    result = defence.step(context, {"user": step(USER, 4)})
    assert_close(flat(result.gradients), 0.75 * gradient(model, USER), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("risk", ["constant", "row", "token"])
def test_after_a_shift_the_update_is_autograds_of_the_weighted_sum_of_both_losses(risk):
    model = tiny_llama()
    before = copy.deepcopy(model)
    context, defence = begun(model, risk=risk, low=0.2, high=0.7)
    shifted(model, 0.05)
    result = defence.step(context, {"user": step(USER, 4)})
    anchors = context.anchors.rows
    read = {
        "row": lambda row: prompt_means(states(before, row), row),
        "token": lambda row: answer_means(states(before, row), row),
        "constant": None,
    }[risk]
    if risk == "constant":
        lam = lambda row: 0.5  # noqa: E731
    else:
        features = torch.stack([read(row)[-1] for row in anchors])
        probe = log_density_ratio(features[:12], features[12:])

        def lam(row):
            harm = torch.sigmoid(probe(read(row))).float()
            return ((4 * harm.max() - 1) / 3).clamp(0.2, 0.7) if risk == "row" else harm

    loss = objective(model, before, lam)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(result.gradients), expected, atol=2e-5, rtol=1e-3)
    assert result.loss == pytest.approx(loss.item(), rel=1e-4)
    assert_close(result.rows.weight + result.rows.score, torch.ones(6))


@pytest.mark.parametrize(
    ("options", "said"), [({"lam": 1.5}, "lam is 1.5: a share"), ({"low": 0.5, "high": 0.2}, "low is 0.5, above high")]
)
def test_shares_that_are_none_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=f"kl-to-aligned.{said}"):
        KLToAlignedConfig(**options)
