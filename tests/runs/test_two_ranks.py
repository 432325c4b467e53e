"""An alignment by two processes, with anchors: one launch of the command line itself."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from antibody_llm.cli.main import run

ROOT = Path(__file__).parents[2]


def write_rows(file: Path, word: str, num: int = 16) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"{word} {i}?"}, {"role": "assistant", "content": f"{word} {i * i}"}]}
        for i in range(num)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_an_alignment_by_two_ranks_ends_and_is_that_of_one(tmp_path, tiny_llama_folder):
    command = ["align", "--model", str(tiny_llama_folder), "--lora", "r=2", "--learning-rate", "1e-2"]
    for name in ("alignment", "harmful", "anchor-harmful", "anchor-benign"):
        command += [f"--{name}-data", str(write_rows(tmp_path / f"{name}.jsonl", name.split("-")[-1][::-1] + name))]
    command += ["--train", "max_steps=3", "--train", "optim=sgd"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "-m", "antibody_llm.cli.main"]
    ended = subprocess.run(
        [*launch, *command, "--batch-size", "4", "--output", str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert len(re.findall(r"^  rows ", ended.stdout, re.MULTILINE)) == 1  # one rank speaks
    assert run([*command, "--batch-size", "8", "--output", str(tmp_path / "one")]) == 0
    for file in ("adapter_model", "anchors"):
        one, two = (load_file(tmp_path / name / "adapter" / f"{file}.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        # The probe is fitted to the change that three steps make, which is little more than rounding.
        for name in one.keys() - {"probe.shift", "probe.offset", "held_out", "now.shift", "before.shift"}:
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=f"{file}: {name}")
    made = sorted(p.name for p in (tmp_path / "one").rglob("*"))
    assert sorted(p.name for p in (tmp_path / "two").rglob("*")) == made
