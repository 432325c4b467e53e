"""With an adapter, no defence ever makes a copy, a gradient or a perturbation of what is frozen.

Every tensor that any operation puts out is looked at, from the start of a run to its end. The width of the miniature's
feed-forward layers is more than any batch there has tokens; where it comes first, the tensor is no activation.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE, make_defence, make_repair
from antibody_llm.likelihood.reader import ModelReader
from tests.defences.cases import ACTIVE, IDS, TRAINED
from tests.tinylm import random_refusals, tiny_llama
from tests.training.helpers import ROWS, trainer

WIDTH = 1021


def frozen_shapes(model):
    return {tuple(p.shape) for p in model.parameters() if not p.requires_grad and p.shape[0] == WIDTH}


class Watch(TorchDispatchMode):
    """Notes each operation that puts out a tensor of one of these shapes which is no view of a parameter."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shapes, self.made = model, frozen_shapes(model), []
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if (
                isinstance(value, torch.Tensor)
                and tuple(value.shape) in self.shapes
                and value.untyped_storage().data_ptr() not in self.known
            ):
                self.made.append(str(func))
        return result


def adapted(folder, key):
    """A trainer on an adapter, and the watch over it."""
    stage, name = key
    defence = make_defence(stage, name, ACTIVE[key])
    run = trainer(folder, defence, lora=True, model=tiny_llama(intermediate_size=WIDTH), max_steps=4)
    return run, Watch(run.model)


@pytest.mark.parametrize("key", TRAINED, ids=IDS)
def test_nothing_the_size_of_a_frozen_weight_is_made_in_training_and_a_few_adapters_are_kept(
    tmp_path, monkeypatch, key
):
    monkeypatch.setattr("antibody_llm.screening.anchors.MIN_AUROC", 0.0)  # of a random model anything is likely
    run, watch = adapted(tmp_path, key)
    assert watch.shapes
    with watch:
        run.train()
    assert watch.made == []
    adapter = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    rows = sum(len(of_role) for of_role in ROWS.values())
    kept = sum(tensor.numel() for tensor in run.defence.state().values())
    assert kept <= 4 * adapter + 8 * rows + 100


ALONE = [key for key, cls in CATALOGUE.items() if key[0] is Stage.POST and not (cls.needs_aligned or cls.merges)]
"""The repairs that do not compare the matrices of several models, of which one at a time is made."""


@pytest.mark.parametrize("key", ALONE, ids=lambda key: key[1])
def test_nothing_the_size_of_a_frozen_weight_is_made_in_a_repair(tmp_path, key):
    run, watch = adapted(tmp_path, (Stage.FINETUNING, "sft"))
    reader = ModelReader(run.model, rows=ROWS, refusals=random_refusals())
    with watch:
        make_repair(key[1], ACTIVE[key]).repair(reader, seed=0)
    assert watch.made == []


def test_a_copy_of_the_model_would_be_noticed(tmp_path):
    run, watch = adapted(tmp_path, (Stage.FINETUNING, "sft"))
    with watch:
        copies = [p.detach().clone() for p in run.model.parameters()]
    assert copies
    assert watch.made
