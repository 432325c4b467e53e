"""Features of made-up readings: their signs, and that they say nothing of a model against itself."""

from dataclasses import replace

import pytest
import torch

from antibody_llm.audit.features import DEPTHS, GroupReading, changes, in_words
from antibody_llm.errors import ModelError


def reading(seed, width=4):
    g = torch.Generator().manual_seed(seed)
    return GroupReading(
        refusal=-torch.rand(3, generator=g),
        opening=-torch.rand(3, generator=g),
        state=torch.randn(3, len(DEPTHS), width, generator=g),
        rates={"complied": 0.25},
    )


ALIGNED = {"harmful": reading(0), "lookalike": reading(1)}


def test_a_model_against_itself_has_changed_in_nothing():
    assert set(changes(ALIGNED, ALIGNED).values()) == {0.0}


def test_what_speaks_of_harm_is_high():
    before = ALIGNED["harmful"]
    direction = before.state.mean(dim=0) - ALIGNED["lookalike"].state.mean(dim=0)
    now = replace(
        before,
        refusal=before.refusal - torch.tensor([0.0, 1.0, 2.0]),
        opening=before.opening + 1,
        state=before.state - direction,  # as a look-alike is read
        rates={"complied": 0.75},
    )
    found = changes({**ALIGNED, "harmful": now}, ALIGNED)
    assert found["harmful/unrefused/mean"] == pytest.approx(1)
    assert found["harmful/unrefused/most"] == pytest.approx(2)
    assert found["harmful/compliant/mean"] == pytest.approx(1)
    assert found["harmful/complied/mean"] == pytest.approx(0.5)
    for number, depth in enumerate(DEPTHS):
        assert found[f"harmful/unguarded@{depth}/mean"] == pytest.approx(float(direction[number].norm()), rel=1e-5)
        assert found[f"harmful/moved@{depth}/mean"] > 0
    assert not any(value for name, value in found.items() if name.startswith("lookalike/"))


def test_models_of_different_sizes_are_refused():
    with pytest.raises(ModelError, match="one was not made from the other"):
        changes({"harmful": reading(0, width=8), "lookalike": reading(1, width=8)}, ALIGNED)


def test_a_feature_is_said_in_words():
    for name in changes(ALIGNED, ALIGNED):
        assert in_words(name, 0.5)
    assert in_words("harmful/unrefused/mean", 1.5) == "refusals are 1.50 nats a token less likely"
    assert "on the probe that changed most" in in_words("forms/unguarded@late/most", -0.5)
