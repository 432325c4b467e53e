"""The published measures against their formulas, on a random model."""

import copy

import pytest
import torch
from tests.defences.plain import flat, gradient, refused, shifted
from tests.tinylm import plain_nll, random_refusals, random_rows, step, tiny_llama
from torch.testing import assert_close

from antibody_llm.training.step import StepContext
from benchmarks import published_measures as measures

HARMFUL, BENIGN, ROWS = random_rows(9, seed=1), random_rows(7, seed=2), random_rows(6, seed=3)
LABELLED = measures.Labelled(HARMFUL, BENIGN)


def context_of(model):
    return StepContext(model, refusals=random_refusals(), batch_size=4)


def state(model, row, layer, place):
    taken = []
    handle = model.model.layers[layer].register_forward_hook(lambda m, a, out: taken.append(out))
    with torch.no_grad():
        model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    out = taken[0][0] if isinstance(taken[0], tuple) else taken[0]
    return out.reshape(len(row.input_ids), -1)[place]


def last(model, rows, layer):
    return torch.stack([state(model, row, layer, -1) for row in rows])


def prompt(model, rows, layer):
    return torch.stack([state(model, row, layer, row.spans[0][0] - 1) for row in rows])


def refusals(rows):
    ids = random_refusals().ids
    return [refused(row, next(iter(ids.values()))[i % 5]) for i, row in enumerate(rows)]


def test_larf_is_the_mean_cosine_with_unsafe_less_that_with_safe_rows_at_the_layer_that_refuses_more_when_enlarged():
    model = tiny_llama()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    costs = []
    for layer in range(2):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in twin.model.layers[layer].named_parameters():
                if "proj" in name:
                    p *= 1.1
        nll = [
            plain_nll(twin, r.input_ids, *r.spans[0]).item() / (r.spans[0][1] - r.spans[0][0]) for r in refusals(BENIGN)
        ]
        costs.append(sum(nll))
    layer = costs.index(min(costs))
    found = measures.larf(context_of(model), LABELLED)(ROWS)
    h, u, s = (last(model, rows, layer) for rows in (ROWS, HARMFUL, BENIGN))
    cos = torch.nn.functional.cosine_similarity
    wanted = [
        torch.stack([cos(x, y, dim=0) for y in u]).mean() - torch.stack([cos(x, y, dim=0) for y in s]).mean() for x in h
    ]
    assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_datashield_is_the_shift_over_the_answer_along_what_parts_answers_from_refusals():
    model = tiny_llama()
    scores = {}
    for layer in range(2):
        a, r = last(model, HARMFUL, layer), last(model, refusals(HARMFUL), layer)
        c = (a.mean(0) - r.mean(0)) / (a.mean(0) - r.mean(0)).norm()
        spread = ((a @ c).var() / 2 + (r @ c).var() / 2).sqrt()
        shift = (last(model, ROWS, layer) - prompt(model, ROWS, layer)) @ c
        scores[((a @ c).mean() - (r @ c).mean()) / spread] = shift
    found = measures.datashield(context_of(model), LABELLED)(ROWS)
    assert_close(found, scores[max(scores)], atol=1e-4, rtol=1e-3)


def test_gradshield_is_the_product_of_a_rows_gradient_with_that_of_the_margin():
    model = tiny_llama()

    def mean_of_rows(rows):
        return sum(gradient(model, [row]) for row in rows) / len(rows)

    safety = mean_of_rows(HARMFUL) - mean_of_rows(refusals(HARMFUL))
    wanted = torch.stack([gradient(model, [row]) @ safety for row in ROWS])
    found = measures.gradshield(context_of(model), LABELLED)(ROWS)
    assert_close(found, wanted, atol=0.02 * float(wanted.abs().max()), rtol=0.02)


def test_the_teachers_measure_is_the_cosine_of_a_prompt_with_what_parts_the_anchors():
    model = tiny_llama()
    feature = prompt(model, HARMFUL, 1).mean(0) - prompt(model, BENIGN, 1).mean(0)
    wanted = torch.nn.functional.cosine_similarity(prompt(model, ROWS, 1), feature[None])
    assert_close(measures.refusal_teacher(context_of(model), LABELLED)(ROWS), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [3, 9])
def test_a_step_of_the_teacher_adds_the_gradients_of_both_cosines_to_plain_sfts(size):
    model = shifted(tiny_llama(), 0.02)
    batches = {"alignment": step(ROWS, size), "harmful": step(HARMFUL, size), "benign": step(BENIGN, size)}
    found = measures.RefusalTeacher().step(context_of(model), batches)
    twin = copy.deepcopy(model)
    feature = prompt(model, HARMFUL, 1).mean(0) - prompt(model, BENIGN, 1).mean(0)
    loss = 0.0
    for rows, sign in ((HARMFUL, -1), (BENIGN, 1)):
        for row in rows:
            taken = []
            handle = twin.model.layers[1].register_forward_hook(lambda m, a, out, taken=taken: taken.append(out))
            twin(input_ids=torch.tensor([row.input_ids]))
            handle.remove()
            out = (taken[0][0] if isinstance(taken[0], tuple) else taken[0]).reshape(len(row.input_ids), -1)
            f = out[row.spans[0][0] - 1]
            loss = loss + sign * torch.nn.functional.cosine_similarity(f, feature, dim=0) / len(rows)
    params = list(twin.parameters())
    parts = torch.autograd.grad(loss, params, allow_unused=True)
    pushed = torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, params, strict=True)]
    )
    assert_close(flat(found.gradients), gradient(model, ROWS) + pushed, atol=2e-5, rtol=1e-3)
