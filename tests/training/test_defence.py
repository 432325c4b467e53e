from typing import ClassVar

import pytest
import torch

from antibody_llm.data.roles import Role, Stage
from antibody_llm.defences.catalogue import CATALOGUE
from antibody_llm.training.defence import Defence, Repair, needed_roles, needs_of
from antibody_llm.training.step import StepContext
from tests.tinylm import random_rows, step, tiny_llama
from tests.training.helpers import trainer


@pytest.mark.parametrize(("stage", "main"), [(Stage.ALIGNMENT, "alignment"), (Stage.FINETUNING, "user")])
def test_a_defence_that_defines_nothing_is_plain_sft_on_the_main_role_of_its_stage(stage, main):
    class Nothing(Defence):
        pass

    Nothing.stage = stage
    context, rows = StepContext(tiny_llama()), random_rows(4, seed=1)
    others = {"alignment": step(random_rows(4, seed=2)), "user": step(random_rows(4, seed=3))}
    result = Nothing().step(context, others | {main: step(rows)})
    plain = context.gradient("token_mean_nll", step(rows))
    assert all(torch.equal(a, b) for a, b in zip(result.gradients, plain.gradients, strict=True))
    assert result.rows.weight.tolist() == [1.0] * 4


def test_a_repair_that_defines_no_repair_cannot_be_made():
    class Nothing(Repair):
        pass

    with pytest.raises(TypeError, match="repair"):
        Nothing()


def test_what_a_defence_needs_is_each_role_once_and_the_resources():
    class Greedy(Defence):
        batches = (Role.HARMFUL, Role.ALIGNMENT)
        reads_at_start = (Role.ALIGNMENT,)
        reads_to_prepare: ClassVar = (Role.BENIGN,)
        needs_refusals = needs_anchors = True

    assert needed_roles(Greedy) == [Role.HARMFUL, Role.ALIGNMENT, Role.BENIGN]
    assert needs_of(Greedy()) == ["harmful", "alignment", "benign", "refusals", "anchors"]
    assert needs_of(CATALOGUE[Stage.POST, "antidote"]) == ["harmful"]
    assert needs_of(CATALOGUE[Stage.POST, "safe-lora"]) == ["aligned", "base"]


class Restoring(Defence):
    """Remembers where the tensors of a checkpoint were when it was given them."""

    stage = Stage.FINETUNING
    devices: tuple = ()

    def state(self):
        return {"kept": torch.zeros(2)}

    def load_state(self, state):
        self.devices = tuple(tensor.device.type for tensor in state.values())


def test_restored_state_is_on_the_models_device(tmp_path, monkeypatch):
    trainer(tmp_path, Restoring(), max_steps=1, save_strategy="steps", save_steps=1).train()
    again = trainer(tmp_path / "b", Restoring(), max_steps=2)
    # A device other than the CPU, where a checkpoint is read to, and which every machine has.
    monkeypatch.setattr(type(again.context), "device", property(lambda self: torch.device("meta")))
    with monkeypatch.context() as patch:
        patch.setattr(Defence, "step", lambda *args: pytest.fail("only the start of the run is looked at"))
        with pytest.raises(pytest.fail.Exception):
            again.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert again.defence.devices == ("meta",)
