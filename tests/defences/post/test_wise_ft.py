"""WiSE-FT against its equation, weight by weight."""

import copy

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.defences.post.wise_ft import WiseFT, WiseFTConfig
from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora, merged
from antibody_llm.models.lora_factors import lora_factors
from antibody_llm.models.matrices import decoder_matrices
from tests.defences.plain import shifted
from tests.tinylm import tiny_llama

TARGETS = ["q_proj", "down_proj"]


def with_adapter(model, seed):
    return shifted(add_lora(copy.deepcopy(model), r=4, targets=TARGETS, seed=0), 0.2, seed=seed)


def repaired(tuned, aligned, share):
    twin = copy.deepcopy(tuned)
    WiseFT(WiseFTConfig(share=share)).repair(ModelReader(twin, aligned=aligned), seed=0)
    return twin


def products(model):
    return {m.name: m.weight() for block in decoder_matrices(model) for m in block}


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_every_weight_goes_the_share_of_its_way(share):
    aligned = shifted(tiny_llama(), 0.1, seed=1)
    tuned = shifted(copy.deepcopy(aligned), 0.1, seed=2)
    got = dict(repaired(tuned, aligned, share).named_parameters())
    for (name, now), (_, before) in zip(tuned.named_parameters(), aligned.named_parameters(), strict=True):
        assert_close(got[name], before + share * (now - before))
        assert not torch.equal(now, before)


def test_an_adapter_that_goes_on_with_the_alignments_moves_by_its_factors():
    aligned = with_adapter(tiny_llama(), seed=1)
    tuned = shifted(copy.deepcopy(aligned), 0.2, seed=2)
    got, before = dict(repaired(tuned, aligned, 0.5).named_parameters()), dict(aligned.named_parameters())
    for name, now in tuned.named_parameters():
        expected = (before[name] + now) / 2 if "lora" in name else now
        assert_close(got[name], expected)


@pytest.mark.parametrize("apart", [True, False])
def test_a_new_adapter_keeps_a_share_of_its_product(apart):
    aligned = shifted(tiny_llama(), 0.1, seed=1)
    tuned = with_adapter(aligned, seed=2)
    got, now, before = (products(m) for m in (repaired(tuned, aligned if apart else None, 0.25), tuned, aligned))
    for name in now:
        assert_close(got[name], before[name] + 0.25 * (now[name] - before[name]))


def test_a_whole_model_is_compared_with_the_merged_alignment():
    aligned = with_adapter(tiny_llama(), seed=1)
    whole = merged(copy.deepcopy(aligned))
    tuned = shifted(copy.deepcopy(whole), 0.1, seed=2)
    got = dict(repaired(tuned, aligned, 0.5).named_parameters())
    for (name, now), (_, before) in zip(tuned.named_parameters(), whole.named_parameters(), strict=True):
        assert_close(got[name], (before + now) / 2)


def test_what_cannot_be_compared_is_named():
    aligned = with_adapter(tiny_llama(), seed=1)
    other = shifted(add_lora(tiny_llama(), r=8, targets=TARGETS, seed=0), 0.2, seed=2)
    with pytest.raises(ModelError, match=r"lora_A.*of shape \[8, \d+\] in the fine-tuned model and of shape \[4"):
        repaired(other, aligned, 0.5)
    whole = merged(copy.deepcopy(aligned))
    for tuned, other in (
        (shifted(copy.deepcopy(aligned), 0.2, seed=2), whole),  # the alignment is in the adapter, and beneath it is not
        (with_adapter(whole, seed=2), aligned),  # the adapter is new, on the merged alignment
    ):
        with pytest.raises(ModelError, match="was not trained on the model given as"):
            repaired(tuned, other, 0.5)
    scaled = with_adapter(tiny_llama(), seed=1)
    for of in lora_factors(scaled):
        of.layer.scaling["default"] *= 2
    with pytest.raises(ModelError, match="does not go on with its adapter"):
        repaired(scaled, aligned, 0.5)
    further = shifted(add_lora(tiny_llama(), r=4, targets=["v_proj"], seed=0), 0.2, seed=2)
    with pytest.raises(ModelError, match="v_proj.*not there in the one"):
        repaired(further, aligned, 0.5)
    beside = with_adapter(tiny_llama(), seed=1)
    beside.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ModelError, match="embed_tokens.* beside the adapter's factors"):
        repaired(beside, tiny_llama(), 0.5)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share):
    with pytest.raises(ConfigError, match=r"wise-ft\.share"):
        WiseFTConfig(share=share)
