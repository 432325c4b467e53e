"""Safe LoRA against its equation: by hand on small matrices, and layer by layer on miniatures."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.post.safe_lora import SafeLoRA, SafeLoRAConfig, onto
from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.matrices import decoder_matrices
from tests.defences.plain import shifted
from tests.tinylm import tiny_llama

TARGETS = ["q_proj", "down_proj"]


def full():
    """(fine-tuned, aligned, base), all their weights trained."""
    base = tiny_llama()
    aligned = shifted(copy.deepcopy(base), 0.1, seed=1)
    return shifted(copy.deepcopy(aligned), 0.1, seed=2), aligned, base


def adapted(*, continued: bool):
    """(fine-tuned, aligned, base): a new adapter on an aligned model, or one that goes on with the alignment's."""
    base = tiny_llama()
    if not continued:
        aligned = shifted(copy.deepcopy(base), 0.1, seed=1)
        return shifted(add_lora(copy.deepcopy(aligned), r=4, targets=TARGETS, seed=0), 0.2, seed=2), aligned, base
    aligned = shifted(add_lora(copy.deepcopy(base), r=4, targets=TARGETS, seed=0), 0.2, seed=1)
    return shifted(copy.deepcopy(aligned), 0.2, seed=2), aligned, base


def weights(model):
    return {m.name: m.weight() for block in decoder_matrices(model) for m in block}


def repaired(tuned, aligned, base, **options):
    twin = copy.deepcopy(tuned)
    SafeLoRA(SafeLoRAConfig(**options)).repair(ModelReader(twin, aligned=aligned, base=base), seed=0)
    return twin


def test_the_released_matrix_scales_and_the_true_projector_does_not():
    v = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # |V|_F = 5, V V' = diag(9, 16)
    d = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    released = onto(v, d, "released", 1.0)
    assert_close(released, torch.tensor([[1.8, 1.8], [3.2, 3.2]]))
    assert not torch.allclose(onto(v, released, "released", 1.0), released)  # not idempotent
    true = onto(v, d, "true", 0.6)  # 16 of 25 lie along the second row
    assert_close(true, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert_close(onto(v, true, "true", 0.6), true)
    assert_close(onto(v, d, "true", 1.0), d)  # V of full rank leaves everything


def expected(tuned, aligned, base, threshold, project):
    """Every layer's weight, in plain PyTorch."""
    result = {}
    before, after = weights(base), weights(aligned)
    for name, w in weights(tuned).items():
        v, d = after[name] - before[name], w - after[name]
        if v.norm() < 1e-6:
            result[name] = w
            continue
        p = project(v) @ d
        cosine = (p * d).sum() / (p.norm() * d.norm()).clamp(min=1e-12)
        result[name] = after[name] + p if d.norm() > 1e-6 and cosine < threshold else w
    return result


def released(v):
    return v @ v.T / v.norm()


def true(v):
    u, s, _ = torch.linalg.svd(v)
    k = next(k for k in range(1, len(s) + 1) if s[:k].square().sum() >= 0.7 * s.square().sum())
    return u[:, :k] @ u[:, :k].T


@pytest.mark.parametrize("make", [full, lambda: adapted(continued=False), lambda: adapted(continued=True)])
@pytest.mark.parametrize("projector", ["released", "true"])
def test_layers_below_the_threshold_have_the_aligned_weight_plus_the_projected_update(make, projector):
    tuned, aligned, base = make()
    threshold = 0.85 if projector == "released" else 0.8
    found = weights(repaired(tuned, aligned, base, projector=projector, threshold=threshold, energy=0.7))
    wanted = expected(tuned, aligned, base, threshold, {"released": released, "true": true}[projector])
    for name, weight in wanted.items():
        assert_close(found[name], weight, atol=1e-5, rtol=1e-4)
    moved = [name for name, w in weights(tuned).items() if not torch.allclose(wanted[name], w, atol=1e-4)]
    assert moved


def test_an_adapter_keeps_its_rank_and_the_model_beneath_its_weights():
    tuned, aligned, base = adapted(continued=True)
    twin = repaired(tuned, aligned, base, threshold=1.0)
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in tuned.named_parameters()}
    for (name, p), q in zip(twin.named_parameters(), tuned.parameters(), strict=True):
        assert torch.equal(p, q) == ("lora_" not in name)


def test_embeddings_norms_and_head_stay_as_they_were_trained():
    tuned, aligned, base = full()
    twin = repaired(tuned, aligned, base, threshold=1.0)
    for (name, p), q in zip(twin.named_parameters(), tuned.parameters(), strict=True):
        assert torch.equal(p, q) == ("_proj" not in name)


def test_an_adapter_trained_on_another_model_is_refused():
    tuned, _, base = adapted(continued=False)
    other = shifted(copy.deepcopy(base), 0.1, seed=7)
    with pytest.raises(ModelError, match="does not fit the adapter, whose rank is 4"):
        repaired(tuned, other, base, threshold=1.0)


def test_an_alignment_that_changed_nothing_is_refused():
    tuned, aligned, _ = full()
    with pytest.raises(ModelError, match="nothing to project onto"):
        repaired(tuned, aligned, aligned)


@pytest.mark.parametrize(("options", "said"), [({"threshold": 1.5}, "threshold is 1.5"), ({"energy": 0.0}, "energy")])
def test_shares_out_of_range_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=f"safe-lora.{said}"):
        SafeLoRAConfig(**options)
