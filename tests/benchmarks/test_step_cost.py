"""The benchmark of a step's cost at a miniature size: what it times is what it says. Never how long it takes."""

import json

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from antibody_llm.likelihood.refusals import Scoring
from benchmarks import step_cost

TINY = step_cost.SIZES["tiny"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Name to step; one step is taken of each."""
    return step_cost.six_steps(TINY, 1, Scoring.AUTO, tmp_path_factory.mktemp("steps"))


def gradient_of_one_step(step):
    """The rows of the step, and its gradients before clipping, one long vector."""
    rows = step.fetch()
    step.gradients(*rows)
    model = step.model if isinstance(step, step_cost.TrainerStep) else step.published.model
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return rows, gradient


def passes(run):
    """(forwards, backwards) that ``run`` makes through a decoder, copies of the model included."""
    made = {"forward": 0, "backward": 0}
    original = LlamaModel.forward

    def backward(gradient):
        made["backward"] += 1

    def counted(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        made["forward"] += 1
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(backward)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "forward", counted)
        run()
    return made["forward"], made["backward"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sft", (1, 1)),
        ("undefended", (1, 1)),
        ("finetune", (2, 1)),  # the second over the refusal's tokens alone
        ("align", (6, 4)),  # the prompts of the harmful rows apart, once at w and once at w_pert
        ("published_finetune", (3, 1)),
        ("published_align", (5, 5)),
    ],
)
def test_each_step_makes_the_passes_that_it_is_said_to_make(steps, name, expected):
    step = steps[name]
    rows = step.fetch()
    assert passes(lambda: step.gradients(*rows)) == expected
    step.update()


def test_the_published_schemes_make_the_updates_that_the_defences_make(tmp_path):
    """So that the costs compare two ways to one result."""
    steps = step_cost.six_steps(TINY, 1, Scoring.AUTO, tmp_path)
    (micro, _), ours = gradient_of_one_step(steps["finetune"])
    published = steps["published_finetune"]
    published.take(micro.rows)
    theirs = torch.cat([p.grad.flatten() for p in published.published.parameters])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(ours.norm()))

    aligner = steps["align"].trainer
    (micro, _), ours = gradient_of_one_step(steps["align"])
    harmful = [row for row, _ in aligner._streams["harmful"].at(0).rows()]
    published = steps["published_align"]
    published.take(micro.rows, harmful, 0)
    theirs = torch.cat([p.grad.flatten() for p in published.published.parameters])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(ours.norm()))


def test_one_run_prints_every_figure_of_the_issue(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # the suite keeps its own
    step_cost.main(["--size", "tiny", "--rounds", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    asked = {
        "finetune_ratio",
        "align_ratio",
        "published_finetune_ratio",
        "published_align_ratio",
        "align_extra_memory_ratio",
    }
    assert {key for key in asked if result[key] > 0} == asked
    assert all(len(result["quartiles_seconds"][name]) == 2 for name in result["median_seconds"])
    assert min(result["peak_bytes"].values()) > 0


def test_fewer_than_two_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        step_cost.main(["--rounds", "1"])
    assert "--rounds must be 2 or more" in capsys.readouterr().err
