"""Six SIGKILLs and two full disks, one process that forks them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kills


def test_killed_runs_and_runs_on_full_disks_end_like_undisturbed_ones_after_the_same_command(tmp_path):
    script, results = Path(kills.__file__), tmp_path / "kills.json"
    command = [sys.executable, str(script), "--output", str(results), "--work", str(tmp_path / "work"), "--small"]
    ended = subprocess.run([*command, "--kills", "6", "--disks", "2"], capture_output=True, text=True)
    if ended.returncode == kills.CANNOT_MOUNT:
        ended = subprocess.run([*command, "--kills", "6", "--disks", "0"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = json.loads(results.read_text())
    assert [row["verb"] for row in made["kills"]] == ["align", "finetune", "evaluate", "screen", "repair", "lab build"]
    assert not any(row["wrong"] for row in (*made["kills"], *made["disks"]))


def test_a_difference_in_a_byte_of_the_weights_or_in_a_number_is_found_and_a_timing_is_not(tmp_path):
    def made(name, *, weight=0, loss=1.0, seconds=1.0):
        folder = tmp_path / name
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(
            (2).to_bytes(8, "little") + b"{}" + bytes([weight])
        )
        (folder / "result.json").write_text(
            json.dumps({"output": str(folder), "metrics": {"loss": loss}, "seconds": seconds})
        )
        return kills.contents(folder)

    one = made("one")
    assert kills.differences(made("later", seconds=2.0), one) == []
    assert kills.differences(made("weight", weight=1), one) == ["adapter/adapter_model.safetensors"]
    assert kills.differences(made("loss", loss=2.0), one) == ["result.json"]
    assert kills.differences(one | {"more": b""}, one) == ["more"]


@pytest.mark.parametrize("name", kills.FOREIGN)
def test_a_foreign_file_that_is_gone_or_changed_is_found(tmp_path, name):
    output = tmp_path / "run"
    foreign = {f"run/{file}": text for file, text in kills.FOREIGN.items()}
    kills.put(foreign, tmp_path)
    reference = kills.Reference(kills.Verb("align", ()), tmp_path, {}, 0.0, {})
    assert kills.compared(output, foreign, reference) == []
    (output / name).write_text("changed")
    assert kills.compared(output, foreign, reference) == [f"foreign: run/{name}"]
