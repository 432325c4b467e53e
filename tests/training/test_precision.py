import pytest
import torch
from transformers import TrainerCallback

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.training.precision import float32_products
from tests.training.helpers import trainer


@pytest.fixture(autouse=True)
def _as_before():
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before


@pytest.mark.parametrize(("tf32", "inside"), [(False, "ieee"), (True, "tf32"), (None, "tf32")])
def test_products_have_the_precision_that_is_asked_for_whatever_an_earlier_run_left(tf32, inside):
    torch.backends.fp32_precision = "tf32"
    with float32_products(tf32):
        assert torch.backends.fp32_precision == inside
    assert torch.backends.fp32_precision == "tf32"


def test_a_run_trains_in_the_precision_of_its_own_configuration(tmp_path):
    torch.backends.fp32_precision = "tf32"  # as an earlier run in this process left it

    class Watched(TrainerCallback):
        seen: list[str] = []

        def on_step_end(self, args, state, control, **kwargs):
            self.seen.append(torch.backends.fp32_precision)

    run = trainer(tmp_path, make_defence(Stage.FINETUNING, "sft"), max_steps=2, tf32=False)
    torch.backends.fp32_precision = "tf32"
    run.add_callback(Watched())
    run.train()
    assert Watched.seen == ["ieee", "ieee"]
