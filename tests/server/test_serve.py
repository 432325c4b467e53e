"""``antibody serve --check``."""

import json
import socket

import httpx2
import pytest

from antibody_llm.cli.main import run
from antibody_llm.errors import ConfigError
from antibody_llm.server import serve
from antibody_llm.server.settings import GateSettings, OfferedModel, ServerSettings
from tests.server.running import DEFENCES

LAB = OfferedModel(name="lab", path="lab-aligned")


@pytest.fixture(autouse=True)
def known_defences(monkeypatch):
    monkeypatch.setattr(serve, "load_defences", lambda home: DEFENCES)


def check(tmp_path, capsys, text, *flags):
    (tmp_path / "a.yaml").write_text(text)
    code = run(["serve", "--config", str(tmp_path / "a.yaml"), "--check", *flags])
    return code, capsys.readouterr()


def test_the_lab_alone_needs_nothing_else(tmp_path, capsys):
    code, shown = check(tmp_path, capsys, "", "--model", "lab", "--json")
    assert code == 0
    assert json.loads(shown.out)["models"][0]["path"] == "lab-aligned"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "models: none is offered"),
        ("models: [/no/such/folder]", "no model's folder"),
        ("models: [meta/x]", "gate.harmful_prompts is missing"),
        ("models: [meta/x]", "gate.judges is missing"),
        ("models: [meta/x]", "models: meta/x: it is not on this machine"),
        ("models: [labb]", "neither a packaged model nor a folder; did you mean 'lab'"),
        ("models: ['a/b/c']", "neither a folder nor a Hub id"),
        ("models: [lab]\ngate: {harmful_prompts: /no/file}", "gate.harmful_prompts: /no/file is no file"),
        ("models: [lab]\ngate: {audit: /no/file}", "gate.audit: /no/file is no file"),
        ("models: [lab]\ngate: {judges: [labb]}", "did you mean 'lab'"),
        ("models: [lab]\ndefence: {name: antibodi}", "did you mean 'antibody'"),
        ("models: [lab]\ndefence: {allowed: [x]}", "no such defence"),
        ("models: [lab]\nmoderation_judge: x", "moderation_judge 'x'"),
        ("models: [lab]\ndatabase: postgresql://nobody@127.0.0.1:1/none", "cannot be reached"),
        ("models: [lab]\nhome: /proc/none", "home: /proc/none cannot be made (No such file or directory)"),
        ("models: [lab]\nblobs: nosuchfs://x", "blobs"),
        ("models: [{name: x, inference: gpu}]", "inference is a URL"),
        ("models: [{name: x, inference_key_env: K}]", "set inference too"),
        (
            "models: [{name: x, inference: http://g/v1, inference_key_env: NO_KEY}]",
            "NO_KEY (inference_key_env) is not set",
        ),
        ("models: [lab]\nlimits: {organization_bytes: -1}", "limits.organization_bytes is -1"),
        ("models: [lab]\ngate: {judges: ['chat=http://gpu/v1#model=x']}", "over a network"),
        ("models: [lab]\ngate: {judges: ['moderation=https://host/v1']}", "over a network"),
        ("models: [lab]\nblobs: /proc/none", "blobs"),
    ],
)
def test_what_keeps_the_server_from_its_settings_is_named(tmp_path, capsys, text, words):
    code, shown = check(tmp_path, capsys, text)
    assert code == 2
    assert words in shown.err


def test_a_judge_of_the_operator_s_own_lies_beside_the_file_and_is_tried_where_jobs_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "import dataclasses, os\n"
        "print('loading the judge')\n"
        "@dataclasses.dataclass\n"
        "class Verdicts: harmful: bool\n"
        "def judge(): return type('J', (), {'name': 'j', 'verdicts': frozenset(), 'judge': None})()\n"
        "def secretive(): return os.environ['OF_THE_SERVER']\n"
    )
    monkeypatch.setenv("OF_THE_SERVER", "x")
    assert check(tmp_path, capsys, "models: [lab]\ngate: {judges: ['mine.py:judge']}")[0] == 0
    code, shown = check(tmp_path, capsys, "models: [lab]\ngate: {judges: ['mine.py:secretive']}")
    assert code == 2
    assert "secretive() failed (KeyError: 'OF_THE_SERVER')" in shown.err
    text = "models: [lab]\ngate: {judges: ['gone.py:x']}"
    assert f"{tmp_path}/gone.py is no file" in check(tmp_path, capsys, text)[1].err


def test_everything_that_is_wrong_is_named_at_once(tmp_path):
    settings = ServerSettings(home=tmp_path, models=(LAB,), gate=GateSettings(judges=("x",), benign_prompts="/none"))
    assert len(serve.problems(settings)) == 2


def test_the_password_of_the_database_is_never_shown(tmp_path, capsys):
    _, shown = check(tmp_path, capsys, "models: [lab]\ndatabase: postgresql://u:hidden@127.0.0.1:1/none")
    assert "hidden" not in shown.err


def test_flags_place_the_database_the_files_and_the_workers(tmp_path, capsys):
    flags = ("--database", f"sqlite:///{tmp_path}/d.sqlite", "--blobs", str(tmp_path / "b"), "--workers", "0")
    code, shown = check(tmp_path, capsys, "models: [lab]", *flags, "--json")
    assert code == 0
    settings = json.loads(shown.out)
    assert (settings["database"], settings["worker"]["count"]) == ("set", 0)
    assert (tmp_path / "d.sqlite").exists()
    assert (tmp_path / "b" / "check").exists()


def test_a_check_leaves_nothing_where_the_home_folder_is_to_be(tmp_path, capsys):
    code, _ = check(tmp_path, capsys, "models: [lab]\nhome: deep/home")
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_a_port_that_is_taken_is_said_before_a_key_is_shown_or_a_process_started(tmp_path, monkeypatch):
    said = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings(home=tmp_path, models=(LAB,), port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="Address already in use.*Name another port"):
            serve.serve(settings, said.append)
    assert said == []


def test_a_second_server_in_the_same_folder_is_refused(tmp_path):
    settings = ServerSettings(home=tmp_path, models=(LAB,), port=0)
    with serve._alone(tmp_path), pytest.raises(ConfigError, match="another server runs in"):
        serve.serve(settings, print)


def test_a_home_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="home: .* cannot be used"):
        serve.serve(ServerSettings(home=tmp_path / "file", models=(LAB,)), print)


def test_fewer_workers_than_none_are_refused(tmp_path, capsys):
    code, shown = check(tmp_path, capsys, "models: [lab]", "--workers", "-1")
    assert code == 2
    assert "0 or more" in shown.err


def test_an_idle_connection_stays_open_for_longer_than_clients_keep_it():
    assert 2 * httpx2.Limits().keepalive_expiry < serve.KEEP_ALIVE_SECONDS
