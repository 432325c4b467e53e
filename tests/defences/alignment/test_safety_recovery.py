"""Safety recovery against its equation: the distribution of k, and the update in plain PyTorch."""

from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.alignment.safety_recovery import SafetyRecovery, SafetyRecoveryConfig, depth
from antibody_llm.errors import ConfigError
from antibody_llm.primitives.noise import generator_at
from antibody_llm.training.interrupted import interrupted
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat, gradient
from tests.tinylm import random_refusals, random_rows, step, tick, tiny_llama

ALIGNMENT, HARMFUL = random_rows(6, seed=1), random_rows(4, seed=2)


def test_half_of_all_refusals_come_first_and_the_rest_anywhere_up_to_the_longest():
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(depth(10, 4, generator) for _ in range(8000))
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert drawn[0] / 8000 == pytest.approx(0.5, abs=0.02)
    assert all(drawn[k] / 8000 == pytest.approx(0.125, abs=0.02) for k in range(1, 5))
    assert {depth(0, 4, generator) for _ in range(20)} == {0}


def test_the_update_is_the_weighted_sum_of_both_token_means():
    model, refusals = tiny_llama(), random_refusals()
    context = StepContext(model, refusals=refusals, seed=5)
    tick(context, step=3)
    defence = SafetyRecovery(SafetyRecoveryConfig(alpha=0.25, longest=4))
    result = defence.step(context, {"alignment": step(ALIGNMENT, 4), "harmful": step(HARMFUL, 3)})
    rows = []
    for position, row in enumerate(HARMFUL):
        start, end = row.spans[0]
        k = depth(end - start - 1, 4, generator_at(5, 3, position))
        rows.append(interrupted(row, refusals.of(row, 3 * 4 + position), k))
    expected = 0.75 * gradient(model, ALIGNMENT) + 0.25 * gradient(model, rows)
    assert_close(flat(result.gradients), expected, atol=1e-6, rtol=1e-4)
    assert any(len(r.input_ids) > len(r.input_ids[: r.spans[0][0]]) + 1 for r in rows)


@pytest.mark.parametrize(("name", "value"), [("alpha", 1.5), ("longest", 0)])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"safety-recovery.{name} is {value}"):
        SafetyRecoveryConfig(**{name: value})
