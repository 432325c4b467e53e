"""The benchmark of antibody-posterior's cost at a miniature size: what it times is what it says. Never how long."""

import json

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from benchmarks import posterior_cost, step_cost

TINY = step_cost.SIZES["tiny"]


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """Name to turn; one is taken of each."""
    return posterior_cost.turns(TINY, 1, tmp_path_factory.mktemp("turns"))


def forwards(turn):
    """(rows, tokens) of every forward that a turn makes through a decoder, and whether a gradient is taken of it."""
    made = []
    original = LlamaModel.forward

    def noted(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        made.append((*output.last_hidden_state.shape[:2], output.last_hidden_state.requires_grad))
        return output

    rows = turn.fetch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "forward", noted)
        turn.gradients(*rows)
    return made


ROW = TINY.prompt + TINY.completion
STEP = (TINY.batch, ROW, True)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("sft", [STEP]),
        ("undefended", [STEP]),
        ("posterior", [(TINY.batch - 1, ROW, True), (1, ROW, True)]),  # the upload's rows, the provider's
    ],
)
def test_every_step_trains_on_as_many_rows_as_plain_sft(turns, name, step):
    assert forwards(turns[name]) == step
    turns[name].update()


def test_a_pass_of_hidden_states_reads_each_prompt_with_two_models(turns):
    assert forwards(turns["feature-shift"]) == [(TINY.batch, TINY.prompt, False)] * posterior_cost.STEPS * 2


@pytest.mark.parametrize(("name", "first"), [("shift", TINY.refusal), ("gap", TINY.completion)])
def test_a_pass_of_likelihoods_computes_each_prompt_once_for_all_its_answers(turns, name, first):
    made = forwards(turns[name])
    assert not any(graph for _, _, graph in made)
    with_prompt = [tokens for _, tokens, _ in made if tokens >= TINY.prompt]
    assert len(with_prompt) == posterior_cost.STEPS * 2
    assert max(with_prompt) <= TINY.prompt + first
    others = sum(rows * tokens for rows, tokens, _ in made if tokens < TINY.prompt)
    num_refusals = posterior_cost.NUM_REFUSALS - (1 if name == "shift" else 0)  # one goes with the prompt
    assert others <= num_refusals * TINY.refusal * TINY.batch * posterior_cost.STEPS * 2


def test_one_run_prints_every_figure(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # the suite keeps its own
    posterior_cost.main(["--size", "tiny", "--rounds", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["step_ratio"] > 0
    assert sorted(result["pass_ratio"]) == ["feature-shift", "gap", "shift"]
    assert min(result["pass_over_undefended"].values()) > 0
    assert set(result["spread"]) == set(result["median_seconds"])


def test_fewer_than_two_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        posterior_cost.main(["--rounds", "1"])
    assert "--rounds must be 2 or more" in capsys.readouterr().err
