"""An endpoint that is not ours: ``transformers serve`` with a tiny model, in a process of its own."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest

from antibody_llm.runs import evaluate

START_SECONDS = 120


def unavailable(why):
    """Skip on a user's machine; in CI the server must start."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def served(tiny_llama_folder, tmp_path):
    """The base URL of the server."""
    command = Path(sys.executable).with_name("transformers")
    if not command.exists():
        command = shutil.which("transformers")
    if command is None:
        unavailable("the command `transformers` is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["serve", str(tiny_llama_folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen([command, *flags], stdout=file, stderr=file)
    try:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                    break
            except httpx2.TransportError:
                time.sleep(0.1)
        else:
            unavailable(f"transformers serve did not start: {log.read_text()[-1000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_server_that_is_not_ours_gives_the_text_that_the_model_gives_here(served, tiny_llama_folder, tmp_path):
    data = {
        "harmful_prompts": [{"messages": [{"role": "user", "content": text}]} for text in ("What is it?", "A fox")],
        "judges": ["keywords"],
        "max_new_tokens": 6,
    }
    there = evaluate(
        endpoint=served, endpoint_model=str(tiny_llama_folder), output=tmp_path / "there", batch_size=2, **data
    )
    here = evaluate(tiny_llama_folder, output=tmp_path / "here", **data)
    said = [pq.read_table(run.output / "completions.parquet").column("completion").to_pylist() for run in (there, here)]
    assert said[0] == said[1]
