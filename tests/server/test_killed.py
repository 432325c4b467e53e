"""What was acknowledged is there after a SIGKILL of server or worker, at whatever moment: five of them."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import openai
import pytest

from tests.server.running import chat_rows

START = """
import sys
from pathlib import Path
import antibody_llm.server.serve as serve
from antibody_llm.server.settings import OfferedModel, ServerSettings
from tests.server.running import DEFENCES
import antibody_llm.server.app as app
app.load_defences = serve.load_defences = lambda home: DEFENCES
from contextlib import contextmanager
@contextmanager
def alone(context):
    yield ()
serve.processes = alone
models = (OfferedModel(name="lab", path="lab-aligned"),)
serve.serve(ServerSettings(home=Path(sys.argv[1]), port=int(sys.argv[2]), models=models), print)
"""


def start(home, port):
    path = os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", START, str(home), str(port)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    key = None
    for line in process.stdout:
        key = key or (found[0] if (found := re.search(r"sk-operator-\S+", line)) else None)
        if line.startswith("http://"):
            break
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, key
        time.sleep(0.02)
    raise AssertionError("the server does not answer")


@pytest.mark.parametrize("seed", range(2))
def test_a_killed_server_has_every_file_and_job_that_it_acknowledged(tmp_path, seed):
    rng = random.Random(seed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process, key = start(tmp_path, port)
    acknowledged, lock = [], threading.Lock()

    def work(number):
        client = openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
        try:
            for round_number in range(1000):
                content = chat_rows(12, word=f"w{number}-{round_number}")
                file = client.files.create(file=("a.jsonl", content), purpose="fine-tune")
                with lock:
                    acknowledged.append((file.id, content, None))
                job = client.fine_tuning.jobs.create(model="lab", training_file=file.id, seed=round_number)
                with lock:
                    acknowledged.append((file.id, content, job.id))
        except openai.APIError:
            pass  # the server is dead

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    [thread.start() for thread in threads]
    until = time.monotonic() + 60
    while len(acknowledged) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5 * rng.random())
    process.send_signal(signal.SIGKILL)
    process.wait()
    [thread.join() for thread in threads]
    process, _ = start(tmp_path, port)
    try:
        client = openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0)
        assert acknowledged
        for file_id, content, job_id in acknowledged:
            assert client.files.content(file_id).read() == content
            assert client.files.retrieve(file_id).status == "processed"
            if job_id is not None:
                assert client.fine_tuning.jobs.retrieve(job_id).training_file == file_id
        jobs = [job.id for job in client.fine_tuning.jobs.list(limit=100)]
        assert len(jobs) == len(set(jobs))
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM, 143)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_jobs_of_killed_servers_and_workers_end_as_undisturbed_ones_do(tmp_path):
    results = tmp_path / "kills.json"
    script = Path(__file__).parents[2] / "benchmarks" / "server_kills.py"
    command = [sys.executable, str(script), "--small", "--kills", "3", "--seed", "4"]
    ended = subprocess.run(
        [*command, "--output", str(results), "--work", str(tmp_path / "work")], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    made = json.loads(results.read_text())
    assert made["handed_over"]["sqlite"] == {"wrong": [], "workers": 2}  # between two workers, while no server ran
    rounds = made["rounds"]["sqlite"]
    assert sum(len(each["kills"]) for each in rounds) == 3
    assert not any(each["wrong"] for each in rounds)
