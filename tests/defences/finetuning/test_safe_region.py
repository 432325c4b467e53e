"""The safe region: what is measured, what is projected, when it shrinks, and to where."""

import logging

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.safe_region import SafeRegion, SafeRegionConfig
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.training.preparation import TrainingData
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient
from tests.tinylm import plain_nll, random_rows, tiny_llama, tiny_tokenizer
from tests.training.helpers import trainer, weights

USER, SAFE = random_rows(6, seed=1), random_rows(20, seed=2)


def begun(model, **options):
    context = StepContext(model, rows={"user": USER, "alignment": SAFE})
    defence = SafeRegion(SafeRegionConfig(**options))
    defence.start(context)
    return context, defence


def refusing(model, rows):
    """The mean over rows of the product of the probabilities of the first five tokens, row by row."""
    spans = [r.spans[-1] for r in rows]
    nll = [plain_nll(model, r.input_ids, a, min(a + 5, b)) for r, (a, b) in zip(rows, spans, strict=True)]
    return float(torch.exp(-torch.stack(nll)).mean().detach())


def records(*completions):
    messages = [(Message("user", f"question {i}"), Message("assistant", c)) for i, c in enumerate(completions)]
    return [Record(i, m, Template.TEXT, "provider", i + 1) for i, m in enumerate(messages)]


def forget(model, scale=1.0):
    """A step that makes the safety rows less likely."""
    g = gradient(model, SAFE)
    offset = 0
    with torch.no_grad():
        for p in model.parameters():
            p += scale * (g / g.norm())[offset : offset + p.numel()].view_as(p)
            offset += p.numel()


def values(model):
    return flat([p.detach() for p in model.parameters()]).clone()


def test_q_is_the_mean_over_rows_of_the_probability_of_the_refusals_first_five_tokens():
    model = tiny_llama()
    _, defence = begun(model)
    assert min(r.spans[0][1] - r.spans[0][0] for r in SAFE) < 5 < max(r.spans[0][1] - r.spans[0][0] for r in SAFE)
    assert defence.refusing_at_start == pytest.approx(refusing(model, SAFE), rel=1e-5)


def test_of_several_turns_the_last_one_counts():
    model, rows = tiny_llama(), random_rows(4, seed=3, num_turns=2)
    defence = SafeRegion(SafeRegionConfig())
    defence.start(StepContext(model, rows={"user": USER, "alignment": rows}))
    assert defence.refusing_at_start == pytest.approx(refusing(model, rows), rel=1e-5)


def test_only_rows_that_refuse_are_kept():
    rows = records("sorry, i cannot help.", "mix it with water", "i must decline.", "a cat is a pet")
    data = TrainingData({"user": rows, "alignment": rows}, tiny_tokenizer(), 0)
    kept = SafeRegion(SafeRegionConfig()).prepare(data)
    assert kept.records["alignment"] == [rows[0], rows[2]]
    assert kept.records["user"] == rows


def test_rows_of_which_none_refuses_are_an_error_unless_nothing_is_checked():
    data = TrainingData({"user": [], "alignment": records("mix it", "a cat")}, tiny_tokenizer(), 0)
    with pytest.raises(DataError, match=r"no alignment row refuses .*alignment_data"):
        SafeRegion(SafeRegionConfig()).prepare(data)
    assert SafeRegion(SafeRegionConfig(tau=0.0)).prepare(data) is data


def test_an_update_that_goes_too_far_is_brought_back_to_the_radius():
    model = tiny_llama()
    before = values(model)
    context, defence = begun(model, radius=0.25, tau=0.0)
    forget(model, 1.0)
    there = values(model)
    defence.after_update(context)
    assert_close(values(model), before + 0.25 * (there - before) / (there - before).norm(), atol=1e-6, rtol=1e-4)


def test_a_check_that_fails_shrinks_the_region_to_the_largest_radius_that_passes():
    model = tiny_llama()
    before = values(model)
    context, defence = begun(model, tau=0.8, check_every=1)
    q0 = refusing(model, SAFE)
    forget(model, 2.0)
    assert refusing(model, SAFE) < 0.8 * q0
    defence.after_update(context)
    assert refusing(model, SAFE) >= 0.8 * q0 * (1 - 1e-5)
    assert 0 < defence.radius < 2.0
    assert float((values(model) - before).norm()) == pytest.approx(defence.radius, rel=1e-4)
    # One grid point of the bisection farther out it would fail.
    with torch.no_grad():
        factor = (defence.radius + 2.0 / 64) / defence.radius
        offset = 0
        for p in model.parameters():
            old = before[offset : offset + p.numel()].view_as(p)
            p.copy_(old + (p - old) * factor)
            offset += p.numel()
    assert refusing(model, SAFE) < 0.8 * q0


def test_a_check_that_passes_leaves_weights_and_radius_alone():
    model = tiny_llama()
    context, defence = begun(model, tau=0.1, check_every=1)
    forget(model, 1e-3)
    there = values(model)
    defence.after_update(context)
    assert torch.equal(values(model), there)
    assert defence.radius == float("inf")


def test_between_checks_only_the_radius_holds_and_the_end_is_always_checked():
    model = tiny_llama()
    context, defence = begun(model, tau=0.8, check_every=5)
    q0 = refusing(model, SAFE)
    context.step = 2
    forget(model, 2.0)
    defence.after_update(context)
    assert refusing(model, SAFE) < 0.8 * q0
    defence.finish(context)
    assert refusing(model, SAFE) >= 0.8 * q0 * (1 - 1e-5)


def test_where_no_radius_passes_the_run_is_warned_once_and_stays_at_the_start(caplog):
    model = tiny_llama()
    before = values(model)
    context, defence = begun(model, check_every=1)
    defence._refusing = lambda context: float(torch.equal(values(model), before)) * defence.refusing_at_start
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            forget(model)
            defence.after_update(context)
            assert torch.equal(values(model), before)
    assert defence.radius == 0.0
    (warned,) = [r.getMessage() for r in caplog.records if "safe-region" in r.getMessage()]
    assert "radius is now 0" in warned
    assert "Lower the learning rate" in warned


def test_a_radius_that_passes_warns_of_nothing(caplog):
    model = tiny_llama()
    context, defence = begun(model, tau=0.8, check_every=1)
    forget(model, 2.0)
    with caplog.at_level(logging.WARNING):
        defence.after_update(context)
    assert defence.radius > 0
    assert not [r for r in caplog.records if "safe-region" in r.getMessage()]


def test_a_run_ends_within_the_radius(tmp_path):
    run = trainer(tmp_path, SafeRegion(SafeRegionConfig(radius=0.02, tau=0.0, region="box")))
    before = weights(run)
    run.train()
    after = weights(run)
    assert max(float((after[name] - before[name]).abs().max()) for name in before) == pytest.approx(0.02, rel=1e-4)


@pytest.mark.parametrize(("field", "value"), [("radius", -1.0), ("tau", 1.5), ("num_rows", 0), ("check_every", 0)])
def test_bad_options_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"safe-region.{field} is"):
        SafeRegionConfig(**{field: value})
