"""The API's process: what it imports, and how it begins and ends."""

import os
import subprocess
import sys
import time

CHECK = """
import sys
from pathlib import Path
from tests.server.console.demo import Browser, Demo
from tests.server.running import Server, chat_rows, dpo_rows, train, upload
with Server(Path(sys.argv[1])) as server:
    client = server.client()
    upload(client, dpo_rows()), upload(client, chat_rows(5000))
    job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
    train(server)
    browser, demo = Browser(server, server.key), Demo(server)
    browser.get(f"/console/jobs/{demo.judged(demo.operator_project, 'held')[0]}").raise_for_status()
    client.models.list(), client.moderations.create(input="x"), client.fine_tuning.jobs.list()
heavy = {"torch", "transformers", "numpy", "trl", "datasets", "ray", "opentelemetry.sdk"} & set(sys.modules)
print("imported", sorted(heavy))
"""


def test_the_apis_process_never_imports_torch_nor_an_extra_that_nobody_configured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])},
    )
    assert done.stdout.strip().endswith("imported []"), done.stderr[-2000:]


def test_housekeeping_runs_beside_the_requests_and_ends_with_the_process(tmp_path):
    from tests.server.running import Server, upload

    with Server(tmp_path, housekeeping_seconds=0.05) as server:
        client = server.client()
        client.webhooks.create(name="h", url="https://example.com/", event_types=["fine_tuning.job.cancelled"])
        job = client.fine_tuning.jobs.create(model="lab", training_file=upload(client).id)
        client.fine_tuning.jobs.cancel(job.id)
        until = time.monotonic() + 10
        while not server.posts and time.monotonic() < until:
            time.sleep(0.02)
        assert len(server.posts) == 1
    assert server.context.stopping
