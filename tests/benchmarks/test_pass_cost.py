"""The benchmark of passes at a miniature size: that it counts the passes that are made. Never how long they take."""

import json

import pytest
import torch
from benchmarks.pass_cost import CASES, KINDS
from transformers.models.llama.modeling_llama import LlamaModel

from antibody_llm.defences.catalogue import CATALOGUE
from benchmarks import pass_cost

TINY = pass_cost.SHORT["tiny"]
LABELS = [case.label for case in CASES]


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    """Label to bench; one cycle is taken of each."""
    made = pass_cost.benches(TINY, CASES, 1, tmp_path_factory.mktemp("passes"))
    return {bench.case.label: bench for bench in made}


def passes_of(run):
    """(rows forward, rows backward) through the decoder while ``run`` runs."""
    rows = {"forward": 0, "backward": 0}
    original = LlamaModel.forward

    def counted(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        states = output.last_hidden_state
        rows["forward"] += len(states)
        if states.requires_grad:
            states.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaModel, "forward", counted)
        run()
    return rows["forward"], rows["backward"]


def test_every_defence_of_the_catalogue_is_measured_but_repairs_that_compare_models():
    measured = {key for key, cls in CATALOGUE.items() if not getattr(cls, "needs_aligned", False)}
    assert {(case.stage, case.name) for case in CASES} == measured
    assert len(set(LABELS)) == len(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_a_step_makes_the_passes_that_are_timed_alone_and_no_others(benches, label):
    bench = benches[label]
    made = passes_of(bench.cycle)
    alone = {name: passes_of(KINDS[name].part(bench.context, bench.batches)) for name in bench.case.passes}
    counted = [sum(times * alone[name][way] for name, times in bench.case.passes.items()) for way in range(2)]
    assert made == tuple(counted)


@pytest.mark.parametrize("case", [case for case in CASES if not case.note], ids=lambda case: case.label)
def test_the_passes_are_as_many_as_the_catalogue_says(case):
    about = CATALOGUE[case.stage, case.name].about
    forwards, backwards = (
        sum(times * getattr(KINDS[name], way) for name, times in case.passes.items())
        for way in ("forwards", "backwards")
    )
    assert backwards == about.backwards
    assert forwards == about.forwards or (case.name == "antibody" and about.forwards == 1.1 and forwards == 2)


def test_one_run_prints_a_ratio_and_its_spread_for_each_defence(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)  # the suite keeps its own
    pass_cost.main(["--size", "tiny", "--rounds", "2", "--only", "booster,antidote", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in result["rows"]] == ["alignment booster", "post antidote"]
    for row in result["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert row["step_seconds"] > 0 < row["passes_seconds"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--rounds", "1"], "--rounds must be 2 or more"), (["--only", "boster"], "no defence is called boster")],
)
def test_what_cannot_be_measured_is_refused(capsys, arguments, said):
    with pytest.raises(SystemExit):
        pass_cost.main(arguments)
    assert said in capsys.readouterr().err
