"""What follows a run's last step: steps on the provider's rows alone, by a plain loop."""

import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError
from antibody_llm.training.batches import Grid, RoleStream
from tests.defences.plain import gradient
from tests.training.helpers import ROWS, trainer

DEFENCES = ("antibody-posterior", "antibody-tokens")
UNARMED = {"prior": (1, math.inf), "rehearsal": 0}
"""What makes either plain SFT."""


def trained(folder, name, **options):
    run = trainer(folder, make_defence(Stage.FINETUNING, name, options))
    run.train()
    return run


@pytest.mark.parametrize("name", DEFENCES)
def test_closing_steps_are_plain_adam_on_the_provider_s_rows_at_a_falling_rate(tmp_path, name):
    closed = trained(tmp_path / "closed", name, closing=0.3, **UNARMED)
    plain = trained(tmp_path / "plain", name, **UNARMED)
    model, args, size = plain.context.model, plain.args, plain.grid.step_size
    num_steps = math.ceil(0.3 * plain.state.max_steps)
    assert num_steps >= 2
    stream = RoleStream("closing", ROWS["alignment"], Grid(size), args.seed, size)
    optimiser = torch.optim.Adam(model.parameters())
    for number in range(num_steps):
        optimiser.param_groups[0]["lr"] = args.learning_rate * (1 - number / num_steps)
        offset, whole = 0, gradient(model, [row for row, _ in stream.at(number).rows()])
        for p in model.parameters():
            p.grad = whole[offset : offset + p.numel()].view_as(p).to(p)
            offset += p.numel()
        optimiser.step()
    for a, b in zip(closed.context.model.parameters(), model.parameters(), strict=True):
        assert_close(a, b, atol=2e-4, rtol=1e-3)  # Adam's first steps divide rounding by itself
    assert closed.row_log.columns() == plain.row_log.columns()


@pytest.mark.parametrize("name", DEFENCES)
def test_closing_needs_rows_of_the_provider_even_without_rehearsal_and_is_a_share(name):
    assert make_defence(Stage.FINETUNING, name, UNARMED).reads_at_start == ()
    assert make_defence(Stage.FINETUNING, name, UNARMED | {"closing": 0.1}).reads_at_start == ("alignment",)
    with pytest.raises(ConfigError, match=rf"{name}\.closing is 1\.0: a share of the run's steps"):
        make_defence(Stage.FINETUNING, name, {"closing": 1.0})
