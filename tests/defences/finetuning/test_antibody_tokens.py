"""antibody-tokens against its equation, token by token in plain PyTorch."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.roles import Role, Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.defences.finetuning import antibody_tokens as module
from antibody_llm.defences.finetuning.antibody_tokens import doubts
from antibody_llm.errors import ConfigError
from antibody_llm.screening.harm import read_harm
from antibody_llm.screening.token_evidence import read_token_evidence, read_token_rule
from antibody_llm.screening.token_harm import judge_answers
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, shifted, token_log_probs, token_logits
from tests.tinylm import random_refusals, step, tiny_llama
from tests.training.helpers import ROWS, made_anchors

ANCHORS = made_anchors(tiny_llama(seed=0), tiny_llama(seed=9))
USER = [*ANCHORS.rows[4:10], *ANCHORS.rows[14:20]]
"""Harmful and harmless rows in equal parts."""


def started(user=USER, **options):
    model = tiny_llama(seed=0)
    rows = {**ROWS, "user": user}
    context = StepContext(
        model, rows=rows, refusals=random_refusals(), base=tiny_llama(seed=9), anchors=ANCHORS, batch_size=4
    )
    defence = make_defence(Stage.FINETUNING, "antibody-tokens", options)
    defence.start(context)
    return defence, context


def weight(p, caution):
    w = max(0.0, 1 - p - caution * p) / (1 - p + caution * p)
    return 1.0 if w > 0.95 else w


def coarse(logits, kept):
    """Probabilities of the kept tokens and of all others together."""
    p = logits.softmax(-1)
    return torch.stack([*(p[v] for v in kept), sum(p[v] for v in range(len(p)) if v not in kept)])


def loss_by_hand(model, aligned, defence, part, reverse, caution):
    harm = {row.row_id: defence.harm.of(row).tolist() for row in USER}
    w = {i: [1.0 if part == "kl" else weight(p, caution) for p in of] for i, of in harm.items()}
    mean = sum(map(sum, w.values())) / sum(map(len, w.values()))
    total = 0.0
    for row in USER:
        start, end = row.spans[0]
        now, before = token_logits(model, row), token_logits(aligned, row).detach()
        for t, token in enumerate(row.input_ids[start:end]):
            doubt = 1 - weight(harm[row.row_id][t], caution)
            total = total - w[row.row_id][t] / max(mean, 0.1) * now[t].log_softmax(-1)[token]
            if part != "mask" and doubt > 0:
                kept = before[t].topk(5).indices.tolist()
                q, p = coarse(now[t], kept), coarse(before[t], kept)
                kl = (q * (q / p).log()).sum() if reverse else (p * (p / q).log()).sum()
                total = total + doubt * kl
    return total / sum(end - start for row in USER for start, end in row.spans)


@pytest.mark.parametrize(
    ("part", "direction", "rehearsal"),
    [("both", "forward", 0.25), ("both", "reverse", 0.0), ("mask", "forward", 0.0), ("kl", "forward", 0.0)],
)
def test_the_update_is_the_equation_token_by_token(part, direction, rehearsal):
    defence, context = started(part=part, direction=direction, rehearsal=rehearsal, caution=3.0, vocabulary=5)
    model = context.model
    aligned = copy.deepcopy(model)
    shifted(model, 0.05)
    provider = ROWS["alignment"][:5]
    got = defence.step(context, {Role.USER: step(USER, 4), Role.ALIGNMENT: step(provider, 4)})
    loss = loss_by_hand(model, aligned, defence, part, direction == "reverse", 3.0)
    if rehearsal:
        nll = [-token_log_probs(model, row) for row in provider]
        loss = (1 - rehearsal) * loss + rehearsal * torch.cat(nll).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(flat(got.gradients), expected, atol=2e-6, rtol=1e-4)
    assert got.loss == pytest.approx(float(loss.detach()), rel=1e-4)
    assert 0.3 < got.metrics["doubted_tokens"] < 0.7


def test_at_the_start_the_kl_has_no_gradient():
    both, context = started(caution=3.0, rehearsal=0.0)
    mask, _ = started(caution=3.0, rehearsal=0.0, part="mask")
    a, b = (flat(d.step(context, {Role.USER: step(USER, 4)}).gradients) for d in (both, mask))
    assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_token_is_judged_by_its_answer_and_its_prompt(monkeypatch):
    monkeypatch.setattr(module, "MIN_AUROC", 0.0)  # random anchors have answers that read alike
    defence, context = started()
    rule = read_token_rule(context, ANCHORS)
    answers = judge_answers(rule, read_token_evidence(context, rule.probe, USER), USER)
    prompts = read_harm(context, ANCHORS, USER, module.EvidenceKind.FEATURE_SHIFT)
    assert prompts.share > 0.2
    for i, row in enumerate(USER):
        asked = 1.0 if prompts.unfamiliar[i] else float(prompts.probability[i])
        expected = [1 - (1 - q) * (1 - asked) for q in answers.tokens.of(row).tolist()]
        assert defence.harm.of(row).tolist() == pytest.approx(expected, abs=1e-5)
    assert defence.shares.tolist() == pytest.approx([prompts.share, answers.share])


def test_answers_that_read_alike_leave_prompts_alone_and_the_run_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(module, "warn", said.append)
    defence, _ = started()
    assert "prompts alone are judged" in said[0]
    assert defence.shares[1] == 0


def test_nothing_doubted_is_sfts_step_to_the_bit():
    harmless = list(ANCHORS.rows[12:])
    defence, context = started(user=harmless, rehearsal=0.0, caution=1e-6)
    sft = make_defence(Stage.FINETUNING, "sft")
    batch = {Role.USER: step(harmless[:8], 4)}
    got, plain = defence.step(context, batch), sft.step(context, batch)
    assert got.metrics["doubted_tokens"] == 0
    assert all(torch.equal(a, b) for a, b in zip(got.gradients, plain.gradients, strict=True))
    assert torch.equal(got.rows.weight, torch.ones(8))


def test_only_doubted_tokens_are_read_and_kept():
    defence, _ = started(caution=3.0)
    doubted = doubts(defence.harm.values, 3.0) > 0
    assert len(defence.frozen.tokens) == int(doubted.sum())
    assert torch.equal(defence.frozen.place >= 0, doubted)
    assert len(started(caution=3.0, part="mask")[0].frozen.tokens) == 0


def test_a_token_that_is_almost_surely_harmless_is_not_doubted():
    # c = 300: w(p) = (1 - 301 p) / (1 + 299 p) is .994 at 1e-5, .941 at 1e-4
    assert doubts(torch.tensor([0.0, 1e-5]), 300.0).tolist() == [0.0, 0.0]
    assert float(doubts(torch.tensor([1e-4]), 300.0)) == pytest.approx(1 - (1 - 0.0301) / (1 + 0.0299), rel=1e-3)


def test_a_resumed_run_has_the_same_doubts_and_predictions():
    defence, context = started(caution=3.0)
    again = make_defence(Stage.FINETUNING, "antibody-tokens", {"caution": 3.0})
    again.load_state(defence.state())
    batches = {Role.USER: step(USER, 4), Role.ALIGNMENT: step(ROWS["alignment"][:5], 4)}
    shifted(context.model, 0.05)
    a, b = defence.step(context, batches), again.step(context, batches)
    assert all(torch.equal(x, y) for x, y in zip(a.gradients, b.gradients, strict=True))
    assert a.metrics == b.metrics


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("vocabulary", 0), ("rehearsal", 1.0), ("caution", 0.0), ("caution", math.inf)),
        *(("prior", (0.5, 1)), ("prior", (math.inf, 1))),
    ],
)
def test_options_without_meaning_are_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"antibody-tokens.{option}"):
        make_defence(Stage.FINETUNING, "antibody-tokens", {option: value})
