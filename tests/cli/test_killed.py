"""A real SIGKILL, at a random step of a real process; the same command then ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from antibody_llm.training.trainer import DefendedTrainer
from tests.gsm8k import write_chat

TIMINGS = ("runtime", "per_second", "flos")


def contents(run: Path) -> dict:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "samples": (run / "samples.parquet").read_bytes(),
        "config": (run / "config.yaml").read_bytes(),
        "metrics": [{k: v for k, v in entry.items() if not any(t in k for t in TIMINGS)} for entry in metrics],
        "files": sorted(p.name for p in run.iterdir()),
    }


def num_logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def test_a_killed_run_ends_bitwise_like_an_undisturbed_one_after_the_same_command(
    antibody, tmp_path, tiny_llama_folder
):
    flags = ["--model", tiny_llama_folder, "--data", write_chat(tmp_path / "user.jsonl"), "--epochs", "3"]
    flags += ["--learning-rate", "1e-2", "--train", "save_steps=3", "--batch-size", "4"]
    flags += ["--train", "gradient_accumulation_steps=2", "--seed", "5"]
    command = [str(word) for word in ("finetune", *flags, "--output")]
    assert antibody(*command, tmp_path / "whole").code == 0

    stop_at = random.randrange(4, 17)  # of 21 steps
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "antibody_llm.cli.main", *command, str(killed)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while num_logged(killed) < stop_at and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (killed / "result.json").exists()
    assert not (killed / "adapter").exists()

    ended = antibody(*command, killed)
    assert ended.code == 0, f"killed after step {stop_at}: {ended.stderr}"
    assert "going on from checkpoint-" in ended.stderr
    assert contents(killed) == contents(tmp_path / "whole"), f"killed after step {stop_at}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_code_and_one_line_that_says_how_to_go_on(
    antibody, tmp_path, tiny_llama_folder, monkeypatch, number, code
):
    command = ["finetune", "--model", tiny_llama_folder, "--data", write_chat(tmp_path / "user.jsonl")]
    command += ["--train", "max_steps=3", "--train", "save_steps=1", "--output", tmp_path / "run"]
    real, handlers = DefendedTrainer.training_step, signal.getsignal(number)

    def interrupted(self, *given, **named):
        if self.state.global_step == 2:
            os.kill(os.getpid(), number)
        return real(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DefendedTrainer, "training_step", interrupted)
        ended = antibody(*command)
    assert ended.code == code
    name = signal.Signals(number).name
    assert ended.stderr.splitlines()[-1] == (
        f"stopped by {name}. Run the same command again: it continues from its last checkpoint, or from the start if "
        "there is none."
    )
    assert "Traceback" not in ended.stderr
    assert signal.getsignal(number) is handlers
    ended = antibody(*command)
    assert ended.code == 0
    assert "going on from checkpoint-2" in ended.stderr
