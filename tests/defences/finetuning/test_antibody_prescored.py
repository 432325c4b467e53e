import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError
from antibody_llm.training.step import StepContext
from tests.tinylm import plain_nll, random_refusals, random_rows, step, tiny_llama

USER = random_rows(6, seed=1)


def begun(model, **options):
    context = StepContext(model, rows={"user": USER}, refusals=random_refusals(), base=tiny_llama(seed=9), batch_size=4)
    defence = make_defence(Stage.FINETUNING, "antibody-prescored", options)
    defence.start(context)
    return defence, context


def plain_scores(model, other, score):
    """Row by row: the refusal's mean NLL less that of the row's completion, or less its own under ``other``."""
    scores = []
    for row in USER:
        (start, end), r = row.spans[0], random_refusals().of(row, row.row_id)
        refused = (*row.input_ids[:start], *r)
        with torch.no_grad():
            refusal = plain_nll(model, refused, start, start + len(r)) / len(r)
            ratio = plain_nll(model, row.input_ids, start, end) / (end - start)
            before = plain_nll(other, refused, start, start + len(r)) / len(r)
        scores.append(float(refusal - (ratio if score == "ratio" else before)))
    return torch.tensor(scores)


@pytest.mark.parametrize("score", ["ratio", "shift"])
@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_weights_are_the_softmax_of_scores_worked_out_row_by_row(score, reduction):
    model = tiny_llama()
    defence, context = begun(model, score=score, tau=0.5, loss_reduction=reduction)
    got = defence.step(context, {"user": step(USER, 4)})
    s = plain_scores(model, tiny_llama(seed=9), score)
    assert_close(got.rows.score, s, atol=1e-5, rtol=1e-4)
    w = torch.softmax(s / 0.5, 0)
    assert_close(got.rows.weight, 6 * w, atol=1e-4, rtol=1e-4)
    nll = torch.stack([plain_nll(model, row.input_ids, *row.spans[0]) for row in USER])
    n = torch.tensor([float(end - start) for row in USER for start, end in row.spans])
    expected = (w * nll).sum() / (w * n).sum() if reduction == "token" else (w * nll / n).sum()
    assert got.loss == pytest.approx(float(expected), rel=1e-5)
    for ours, theirs in zip(got.gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_scores_stay_those_of_before_the_first_step_and_survive_a_checkpoint():
    model = tiny_llama()
    defence, context = begun(model)
    s = plain_scores(model, model, "ratio")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    twin = make_defence(Stage.FINETUNING, "antibody-prescored")
    twin.load_state(defence.state())
    for d in (defence, twin):
        assert_close(d.step(context, {"user": step(USER)}).rows.score, s, atol=1e-5, rtol=1e-4)


def test_only_the_shift_needs_the_model_before_alignment():
    assert not make_defence(Stage.FINETUNING, "antibody-prescored").needs_base
    assert make_defence(Stage.FINETUNING, "antibody-prescored", {"score": "shift"}).needs_base


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(tau):
    with pytest.raises(ConfigError, match="antibody-prescored.tau"):
        make_defence(Stage.FINETUNING, "antibody-prescored", {"tau": tau})
