import json
import math
import time

import pytest
import torch

import gpu_check
from antibody_llm.data.roles import Stage

CPU = torch.device("cpu")


@pytest.fixture
def check(tmp_path):
    made = gpu_check.Check(tmp_path, CPU, small=True)
    made.begin("heads")
    return made


def stored(check):
    return json.loads((check.output / check.file).read_text())["rows"]


def test_without_a_gpu_nothing_is_claimed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 2
    assert "nothing was checked" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_measurement_that_fails_is_stored_at_once_and_the_next_is_still_taken(check):
    def fail():
        raise RuntimeError("no kernel image | for this device\nat all")

    check.measure("heads", "first", fail)
    assert stored(check)[0]["status"] == "failed"
    check.measure("heads", "second", lambda: {"loss": 1.0, "passed": False})
    check.measure("heads", "third", lambda: {"loss": 2.0})
    assert [row["status"] for row in stored(check)] == ["failed", "differs", "passed"]
    lines = [line for line in (check.output / "gpu_check.md").read_text().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {4}
    assert "no kernel image / for this device at all" in lines[2]


def test_nothing_is_begun_after_a_part_s_time_box(check):
    check.ends = time.monotonic() - 1
    check.measure("heads", "late", lambda: pytest.fail("taken"))
    assert stored(check)[0]["status"] == "skipped"


@pytest.mark.parametrize("mode", ["fp32", "tf32", "bf16"])
def test_a_tolerance_grows_with_the_roundoff_and_with_what_the_defence_magnifies(mode):
    calm, excited = (gpu_check.tolerance(mode, e) for e in (0.02, 0.5))
    assert gpu_check.ROUNDOFF[mode] < calm < excited
    assert calm < {"fp32": 1e-4, "tf32": 1e-2, "bf16": 1e-1}[mode]


def test_weights_that_are_off_on_one_device_or_after_a_resume_differ(check, tmp_path, monkeypatch):
    runs = {}
    train = gpu_check.train

    def once(stage, name, device, mode, folder, **changed):
        key = (mode, *changed)
        runs[key] = runs.get(key) or train(stage, name, device, mode, folder, **changed)
        return gpu_check.replace(runs[key], after=runs[key].after + off.get(key, 0.0))

    monkeypatch.setattr(gpu_check, "train", once)
    off = {}
    found = gpu_check.compare_defence(check, Stage.ALIGNMENT, "sft", tmp_path)
    assert found["passed"]
    assert found["fp32"] == found["resumed"] == 0
    assert 0 < found["cpu_bf16"] < 0.1
    assert set(runs) == {("fp32",), ("bf16",), ("fp32", "save_strategy", "save_steps"), ("fp32", "resume")}
    for key in (("fp32", "save_strategy", "save_steps"), ("fp32", "resume")):
        off = {key: 1e-3}
        assert not gpu_check.compare_defence(check, Stage.ALIGNMENT, "sft", tmp_path)["passed"]


def test_the_lab_is_held_to_the_cpu_s_shares(check):
    def row(name, harmful_score, **more):
        return {"part": "lab", "name": name, "status": "passed", "num": 256, "harmful_score": harmful_score, **more}

    (check.output / "lab-cpu.json").write_text(json.dumps({"rows": [row("sft", 0.75), row("antibody-posterior", 0.0)]}))
    check.rows = [row("sft", 0.78), row("antibody-posterior", 0.1)]
    gpu_check.beside_the_cpu(check, check.output / "lab-cpu.json")
    assert [r["status"] for r in stored(check)] == ["passed", "differs", "passed", "passed"]
    gpu_check.beside_the_cpu(check, check.output / "absent.json")
    assert stored(check)[-1]["status"] == "failed"


def test_shares_agree_up_to_chance():
    assert gpu_check._same_share(0.75, 0.80, 256)
    assert not gpu_check._same_share(0.0, 0.1, 256)


def test_twins_share_their_frozen_weights_and_nothing_else():
    large = gpu_check.large_sizes(small=True)["tiny"]
    weights = gpu_check.random_weights(large, CPU, torch.float32)
    a, b = (dict(gpu_check.twin(weights).named_parameters()) for _ in range(2))
    for name, p in a.items():
        assert (p is b[name]) is not p.requires_grad
    assert math.isclose(sum(p.requires_grad for p in a.values()), 6 * large.size.layers)
