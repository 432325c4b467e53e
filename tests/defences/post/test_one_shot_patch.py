"""The one-shot patch against its description: the weights by hand, and its steps in plain PyTorch."""

import copy

import pytest
import torch

from antibody_llm.defences.post.one_shot_patch import OneShotPatch, OneShotPatchConfig, salient
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from antibody_llm.training.preparation import TrainingData
from tests.defences.plain import mean_nll, shifted
from tests.tinylm import random_rows, tiny_llama
from tests.training.helpers import as_record

PAIR = random_rows(1, seed=2)


def patched(model, **options):
    OneShotPatch(OneShotPatchConfig(**options)).repair(ModelReader(model, rows={"alignment": PAIR}), seed=0)
    return model


def test_the_largest_gradients_of_all_tensors_together_are_chosen_and_never_none():
    gradients = [torch.tensor([[1.0, -5.0], [0.0, 2.0]]), torch.tensor([-4.0, 3.0])]
    assert [at.tolist() for at in salient(gradients, 0.5)] == [[1], [0, 1]]
    assert [at.tolist() for at in salient(gradients, 0.001)] == [[1], []]


@pytest.mark.parametrize(
    "make", [tiny_llama, lambda: shifted(add_lora(tiny_llama(), r=4, targets=["q_proj"], seed=0), 0.2)]
)
def test_the_chosen_weights_take_steps_of_adam_on_the_refusal_and_all_others_stay(make):
    model = make()
    twin = copy.deepcopy(model)
    params = [p for p in twin.parameters() if p.requires_grad]
    first = torch.cat([g.flatten().abs() for g in torch.autograd.grad(mean_nll(twin, PAIR), params)])
    chosen = first >= first.sort().values[-round(0.05 * len(first))]
    optimiser = torch.optim.Adam(params, lr=1e-3)
    masks = chosen.split([p.numel() for p in params])
    for _ in range(3):
        optimiser.zero_grad()
        mean_nll(twin, PAIR).backward()
        for p, mask in zip(params, masks, strict=True):
            p.grad *= mask.view_as(p)
        optimiser.step()
    before = mean_nll(model, PAIR).item()
    found = dict(patched(model, share=0.05, num_steps=3, learning_rate=1e-3).named_parameters())
    for name, p in twin.named_parameters():
        torch.testing.assert_close(found[name], p, atol=1e-6, rtol=1e-5)
    assert mean_nll(model, PAIR).item() < before


def test_the_refusals_are_drawn_by_the_seed_among_rows_that_refuse():
    rows = random_rows(9, seed=2)
    records = [as_record(row, text) for row, text in zip(rows, ["sorry no", "t5 t6"] * 5, strict=False)]
    method = OneShotPatch(OneShotPatchConfig(num_pairs=2))
    picked = [
        [r.row_id for r in method.prepare(TrainingData({"alignment": records}, None, seed=seed)).records["alignment"]]
        for seed in (0, 0, 1, 2, 3)
    ]
    assert picked[0] == picked[1]
    assert len({tuple(ids) for ids in picked}) > 1
    assert all(len(ids) == 2 and not any(i % 2 for i in ids) for ids in picked)
    with pytest.raises(DataError, match="one-shot-patch needs at least 2 of the alignment rows to refuse"):
        method.prepare(TrainingData({"alignment": records[:2]}, None, seed=0))


@pytest.mark.parametrize("options", [{"num_pairs": 0}, {"share": 0.0}, {"num_steps": -1}, {"learning_rate": 0.0}])
def test_numbers_out_of_range_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f"one-shot-patch.{next(iter(options))}"):
        OneShotPatchConfig(**options)
