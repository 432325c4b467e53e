"""Sharded models: a step is that of one process, and what cannot be is refused or found out at the start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.sharded_ranks import EXACT, REFUSED, RESUMED

ROOT = Path(__file__).parents[2]
of_case = pytest.mark.parametrize("case", [" ".join(case) for case in EXACT])


@pytest.fixture(scope="session")
def found(tmp_path_factory) -> dict:
    """All of it in one launch of two gloo processes."""
    folder = tmp_path_factory.mktemp("sharded")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "tests.training.sharded_ranks"]
    done = subprocess.run(
        [*launch, str(folder)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@of_case
def test_the_gradients_and_weights_of_two_sharded_ranks_are_those_of_one_process(found, case):
    assert max(found["differences"][case]) <= 1e-5


@pytest.mark.parametrize("case", [" ".join(case) for case in RESUMED])
def test_a_sharded_run_resumed_in_new_objects_ends_bitwise_the_same(found, case):
    assert found["resumed"][case]


def test_each_of_two_ranks_holds_half_of_weights_gradients_moments_and_what_the_defence_keeps(found):
    assert set(found["held"]) == {"parameters", "gradients", "optimiser", "defence"}
    assert max(found["held"].values()) <= 1.1 / 2


@pytest.mark.parametrize("key", [" ".join(key) for key in REFUSED])
def test_a_defence_that_needs_whole_weights_is_refused_and_says_what_for(found, key):
    assert "from whole weights, and under FSDP every rank has a part of each" in found["refused"][key]


def test_a_spectral_region_is_refused_and_the_others_are_not():
    from antibody_llm.data.roles import Stage
    from antibody_llm.defences.catalogue import make_defence

    spectral = make_defence(Stage.FINETUNING, "safe-region", {"region": "spectral"})
    assert spectral.whole_weights == "singular values"
    assert make_defence(Stage.FINETUNING, "safe-region", {"region": "box"}).whole_weights is None


def test_the_check_at_the_start_stops_with_both_numbers_where_gradients_are_averaged(found):
    text = found["wrong gradient"]
    assert "under FSDP the gradient of" in text
    ours, theirs = (float(text.split(before)[1].split()[0].rstrip(",")) for before in ("has norm ", "without it "))
    assert ours == pytest.approx(theirs / 2, rel=1e-3)


def test_the_check_at_the_start_stops_where_a_perturbation_would_be_lost(found):
    assert "and the next pass computed with norm" in found["lost perturbation"]


def test_an_adapter_that_is_put_on_a_sharded_model_is_refused(found):
    assert "Put the adapter on the model before it is sharded" in found["adapter afterwards"]
