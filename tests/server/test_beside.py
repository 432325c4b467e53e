import io
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from antibody_llm.cli.main import run
from antibody_llm.server.beside import Kept, Supervisor, processes
from antibody_llm.server.loading import settings_of
from antibody_llm.server.parent import PARENT
from antibody_llm.server.settings import DefenceSettings, OfferedModel, ServerSettings, WorkerSettings

SLEEP = [sys.executable, "-S", "-c", "import sys, time; sys.stdin.read(); time.sleep(60)"]


def until(holds, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_a_process_that_ends_is_started_again_and_all_end_with_the_block():
    kept = Kept("sleeper", SLEEP)
    kept.pause = 0.01
    with Supervisor([kept], every=0.02):
        first = kept.process.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: kept.process is not None and kept.process.pid != first)
        last = kept.process
    assert last.returncode == -signal.SIGTERM


def test_the_key_of_an_endpoint_is_in_the_environment_of_no_process_beside(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_THE_ENDPOINT", "sk-secret")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started.append(how["env"]) or StartedProcess())
    offered = OfferedModel(name="far", inference="http://gpu:8001/v1", inference_key_env="KEY_OF_THE_ENDPOINT")
    settings = ServerSettings(home=tmp_path, models=(offered,))
    with processes(SimpleNamespace(settings=settings)):
        pass
    assert len(started) == 2
    for environment in started:
        assert "PATH" in environment
        assert "KEY_OF_THE_ENDPOINT" not in environment


def test_the_process_that_answers_takes_its_share_of_the_cores_beside_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("antibody_llm.server.working.executor.num_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started.append(how["env"]) or StartedProcess())
    settings = ServerSettings(home=tmp_path, models=(OfferedModel(name="lab"),), worker=WorkerSettings(count=2))
    with processes(SimpleNamespace(settings=settings)):
        pass
    assert [environment.get("OMP_NUM_THREADS") for environment in started] == ["2", None, None]


class StartedProcess:
    """A process that has ended well when it is asked to."""

    def __init__(self):
        self.stdin = io.BytesIO()

    def poll(self):
        return 0

    def wait(self, timeout=None):
        return 0


def test_a_process_that_keeps_ending_is_started_ever_more_rarely():
    kept = Kept("quitter", [sys.executable, "-S", "-c", ""])
    kept.pause = 0.01
    with Supervisor([kept], every=0.01):
        until(lambda: kept.pause >= 0.08)


def test_a_process_that_does_not_end_is_killed():
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    kept = Kept("stubborn", [sys.executable, "-S", "-c", stubborn])
    with Supervisor([kept], grace=0.3):
        time.sleep(0.5)
        process = kept.process
    assert process.returncode == -signal.SIGKILL


def test_a_process_ends_with_its_parent_however_that_ends():
    child = (
        "import signal, time; from antibody_llm.server.parent import die_with_parent; die_with_parent(signal.SIGKILL);"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, signal, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdout=subprocess.PIPE); p.stdout.readline(); print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE)
    pid = int(process.stdout.readline())
    process.communicate()
    until(lambda: not _runs(pid))


def test_a_process_whose_parent_was_killed_while_it_began_ends_by_itself():
    gone = subprocess.run([sys.executable, "-S", "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    code = "import signal; from antibody_llm.server.parent import die_with_parent; die_with_parent(signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {PARENT: gone.stdout.strip()})
    assert done.returncode == 1


def test_the_server_s_processes_are_told_whose_they_are(tmp_path):
    code = f"import os, pathlib; pathlib.Path({str(tmp_path / 'said')!r}).write_text(os.environ[{PARENT!r}])"
    kept = Kept("child", [sys.executable, "-S", "-c", code])
    kept.start()
    kept.process.wait()
    assert (tmp_path / "said").read_text() == str(os.getpid())


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_is_given_the_server_s_settings_whole(tmp_path):
    import json
    from dataclasses import asdict

    settings = ServerSettings(
        home=tmp_path,
        models=(OfferedModel(name="lab", path="lab-aligned"), OfferedModel(name="x", inference="http://h/v1")),
        defence=DefenceSettings(name="sft", options={"a": 1}, allowed=("sft",)),
    )
    assert settings_of(json.loads(json.dumps(asdict(settings), default=str))) == settings


def test_the_api_s_process_imports_no_torch():
    code = (
        "import sys; import antibody_llm.server.serve, antibody_llm.server.worker, antibody_llm.cli.worker; "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--model", "lab", "--executor", "slurm"], "it is local, ray://auto"), ([], "no model is offered")],
)
def test_a_worker_that_could_do_nothing_is_refused(flags, words, capsys):
    assert run(["worker", *flags]) == 2
    assert words in capsys.readouterr().err
