"""``deploy/`` and ``docs/serving.md``: their settings pass the real check, their commands and calls exist."""

import ast
import configparser
import functools
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args, get_type_hints

import openai
import pytest
import typer
import yaml
from sqlalchemy import text

from antibody_llm.cli.main import app
from antibody_llm.models.adapters import add_lora
from antibody_llm.server import beside, serve
from antibody_llm.server.auth import first_key
from antibody_llm.server.loading import load_settings
from antibody_llm.server.settings import GateSettings, OfferedModel, ServerSettings
from tests.server.running import DEFENCES

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, PAGE = ROOT / "deploy", ROOT / "docs" / "serving.md"
EXAMPLE = (DEPLOY / "antibody.yaml").read_text(encoding="utf-8")
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
IMAGE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
UNIT = configparser.ConfigParser(strict=False, interpolation=None)
UNIT.optionxform = str
UNIT.read(DEPLOY / "antibody.service")
OTHERS = {
    "pip",
    "python",
    "ray",
    "sqlite3",
    "cp",
    "pg_dump",
    "createdb",
    "pg_restore",
    "export",
    "curl",
    "docker",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
}
"""What the page's commands begin with, beside ours."""


@pytest.fixture(autouse=True)
def known_defences(monkeypatch):
    monkeypatch.setattr(serve, "load_defences", lambda home: DEFENCES)


def blocks(language):
    return [code for kind, code in BLOCKS if kind == language]


def lines(code):
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def parse(words):
    """Have the command line parse a command, and not run it."""
    assert Path(words[0]).name == "antibody", words
    command = typer.main.get_command(app)
    context = command.make_context("antibody", list(words[1:2]), resilient_parsing=True)
    verb = command.get_command(context, words[1])
    assert verb is not None, words
    return verb.make_context(words[1], list(words[2:])).params


def written_in(unit):
    """The commands of antibody in the text of a unit."""
    return [shlex.split(line) for line in re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)]


# -- antibody.yaml -----------------------------------------------------------------------------------------------------


def test_the_example_passes_the_check_with_the_lab_and_nothing_else(tmp_path):
    settings = load_settings(DEPLOY / "antibody.yaml", home=tmp_path)
    assert serve.problems(settings) == []
    assert settings.models == (OfferedModel(name="lab", path="lab-aligned"),)


def test_the_example_has_every_key_and_each_that_is_marked_has_its_default():
    written = yaml.safe_load(re.sub(r"^( *)#: ", r"\1", EXAMPLE, flags=re.MULTILINE))
    assert set(written) == {each.name for each in fields(ServerSettings)}
    plain = yaml.safe_load(EXAMPLE)
    for name, default in defaults(ServerSettings).items():
        kind = type(default)
        if name == "models":
            named = set(
                re.findall(r"^#? +-? *(\w+): ", EXAMPLE.split("models:")[1].split("\ndefence:")[0], re.MULTILINE)
            )
            assert named == {each.name for each in fields(OfferedModel)}
        elif isinstance(written[name], dict):
            inner = defaults(kind)
            assert set(written[name]) == set(inner), name
            for key, value in written[name].items():
                assert key in (plain[name] or {}) or value == inner[key], f"{name}.{key}"
        else:
            assert written[name] == default, name


def defaults(kind):
    """What each field of a dataclass is where the file does not say it, as YAML has it."""
    made = {each.name: each.default if each.default is not MISSING else each.default_factory() for each in fields(kind)}
    as_yaml = {tuple: list, type(Path()): str}
    return {name: as_yaml.get(type(value), lambda same: same)(value) for name, value in made.items()}


@pytest.mark.parametrize("code", blocks("yaml"))
def test_the_settings_of_the_page_pass_the_check(code, tmp_path, monkeypatch):
    for name in re.findall(r"/models/([\w.-]+)", code):
        (tmp_path / "models" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    for name in re.findall(r"[\w-]+\.jsonl", code):
        (tmp_path / name).write_text("")
    (tmp_path / "antibody.yaml").write_text(code.replace("/models/", f"{tmp_path}/models/"))
    settings = load_settings(tmp_path / "antibody.yaml")
    if settings.telemetry.otlp:
        pytest.importorskip("opentelemetry.sdk", reason="traces need the extra [traces]")
    if settings.database:  # a machine that is not here
        monkeypatch.setattr(serve, "_storage", lambda settings: [])
    monkeypatch.setattr(serve, "_cluster", lambda settings: [])
    assert serve.problems(settings) == []
    assert "lab" not in [model.path or model.name for model in settings.models], "it complies with everything"


def test_every_key_of_the_file_is_explained_in_the_reference(tmp_path):
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    shown = build.prepared(TEXT, ".", None)
    assert "{{" not in shown
    for each in fields(ServerSettings):
        hint = get_type_hints(ServerSettings)[each.name]
        inner = next((kind for kind in (hint, *get_args(hint)) if hasattr(kind, "__dataclass_fields__")), None)
        if inner is None:
            assert re.search(rf"^- \*\*`{each.name}`\*\* \(default `.*`\): \S", shown, re.MULTILINE), each.name
            continue
        section = shown.partition(f"### {each.name}\n")[2].partition("\n### ")[0]
        for key in fields(inner):
            assert re.search(rf"^- \*\*`{key.name}`\*\* \(.*\): \S", section, re.MULTILINE), f"{each.name}.{key.name}"


def test_the_defaults_of_the_gate_and_the_limits_are_those_of_the_page():
    for name in ("max_harmful_score", "max_over_refusal_increase"):
        assert f"`{name}: {getattr(GateSettings(), name):.2f}`" in TEXT
    limits, shown = ServerSettings().limits, {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    for row in re.findall(r"^\| [^|]+ \| ([^|]+) \| (`limits\.[^|]+) \|$", TEXT, re.MULTILINE):
        for value, name in zip(row[0].split(", "), re.findall(r"limits\.(\w+)", row[1]), strict=True):
            number, _, unit = value.partition(" ")
            assert float(number) * shown.get(unit, 1) == getattr(limits, name), name


# -- commands ----------------------------------------------------------------------------------------------------------


def test_every_command_of_the_page_exists_with_its_flags():
    found = 0
    for code in blocks("bash"):
        for line in lines(code):
            words = shlex.split(line, comments=True)
            assert words[0] in {"antibody", *OTHERS}, line
            if words[0] == "antibody":
                parse(words)
                found += 1
            for path in re.findall(r"(?:deploy|examples)/[\w./-]+", line):
                assert (ROOT / path).is_file(), path
    for words in written_in(TEXT):
        parse(words)
    assert found >= 5
    flags = set(re.findall(r"`(--[\w-]+)`", TEXT))
    command = typer.main.get_command(app)
    known = {option for verb in ("serve", "worker") for each in command.commands[verb].params for option in each.opts}
    assert flags <= known


@pytest.mark.parametrize("code", blocks("python"))
def test_every_call_of_the_page_is_one_of_the_real_client(code):
    client = openai.OpenAI(api_key="x", base_url="http://localhost/v1")
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if call.startswith("client.")]
    assert ours
    for call in ours:
        assert callable(functools.reduce(getattr, call.split(".")[1:], client)), call


def test_the_move_from_the_hosted_api_takes_ten_lines():
    (code,) = blocks("python")
    assert len(lines(code)) <= 10


def test_every_route_of_an_operator_is_on_the_page_and_the_other_way_round(server):
    paths = server.app.openapi()["paths"]
    there = {
        (verb.upper(), path.removeprefix("/v1/operator").replace(":path", ""))
        for path, verbs in paths.items()
        if path.startswith("/v1/operator")
        for verb in verbs
    }
    table = TEXT.partition("| route below `/v1/operator`")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(GET|POST|DELETE) (/[^`]+)`", table)) == there


def test_the_statement_that_replaces_lost_keys_has_the_server_print_a_new_one(fresh):
    (statement,) = blocks("sql")
    database = fresh.context.database
    assert first_key(database, "default") is None
    with database.write() as session:
        session.execute(text(statement))
    assert first_key(database, "default").startswith("sk-operator-")


def test_an_endpoint_is_started_for_adapters_of_the_rank_that_jobs_make():
    assert f"--max-lora-rank {inspect.signature(add_lora).parameters['r'].default}" in TEXT


# -- containers and systemd --------------------------------------------------------------------------------------------


def test_the_compose_file_names_files_that_exist_and_commands_that_parse():
    for name in ("server", "worker"):
        service = COMPOSE["services"][name]
        context = DEPLOY / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).is_file(), volume
        command = parse(["antibody", *shlex.split(service["command"])])
        assert command["database"] == "postgresql://antibody@database/antibody"
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service["depends_on"]) <= set(COMPOSE["services"])
    assert parse(["antibody", *shlex.split(COMPOSE["services"]["server"]["command"])])["workers"] == 0


def test_no_file_of_ours_holds_a_password():
    for path in DEPLOY.iterdir():
        assert not re.search(r"://\w+:[^@\s]+@", path.read_text(encoding="utf-8")), path
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            assert "PASSWORD" not in name or value.startswith("${POSTGRES_PASSWORD:?"), name


def test_the_image_copies_files_that_exist_and_its_command_parses():
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
            assert f"!{source}" in kept, f"{source} does not reach the build"
    (command,) = re.findall(r"^CMD (.+)$", IMAGE, re.MULTILINE)
    assert parse(["antibody", *json.loads(command)])["host"] == "0.0.0.0"


def test_the_unit_runs_a_command_that_parses_as_a_user_of_its_own_and_lets_jobs_leave_the_network():
    service = UNIT["Service"]
    assert parse(shlex.split(service["ExecStart"]))["home"] == Path("/var/lib/antibody")
    assert service["User"] == "antibody"
    assert set(service["RestrictNamespaces"].split()) == {"user", "net"}  # stages.py
    assert service["KillMode"] == "mixed"  # beside.py ends the others itself


def test_the_container_listens_lives_and_is_probed_where_the_compose_file_says(server):
    port = str(ServerSettings().port)
    (exposed,) = re.findall(r"^EXPOSE (\d+)$", IMAGE, re.MULTILINE)
    (published,) = COMPOSE["services"]["server"]["ports"]
    assert published.split(":")[-2:] == [port, exposed]
    probe = COMPOSE["services"]["server"]["healthcheck"]["test"]
    compile(probe[-1], "healthcheck", "exec")
    (asked_port, path) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)'", probe[-1])[0]
    assert asked_port == port
    assert server.http.get(path, headers={"authorization": ""}).status_code == 200
    (home,) = re.findall(r"--home-dir (\S+) ", IMAGE)
    command = json.loads(re.findall(r"^CMD (.+)$", IMAGE, re.MULTILINE)[0])
    assert f"VOLUME {home}" in IMAGE
    assert f"WORKDIR {home}" in IMAGE
    assert command[command.index("--home") + 1] == home
    for name in ("server", "worker"):
        service = COMPOSE["services"][name]
        words = shlex.split(service["command"])
        targets = dict(volume.split(":")[:2] for volume in service["volumes"])
        assert targets["data"] == words[words.index("--home") + 1] == home
        assert targets["./antibody.yaml"] == words[words.index("--config") + 1]
    assert re.search(r"^USER antibody$", IMAGE, re.MULTILINE)


def test_a_container_has_the_time_to_end_that_the_server_takes():
    def seconds(text):
        return float(text.removesuffix("min").removesuffix("m")) * 60

    for given in (COMPOSE["services"]["server"]["stop_grace_period"], UNIT["Service"]["TimeoutStopSec"]):
        assert seconds(given) > serve.GRACE_SECONDS + beside.GRACE


def test_systemd_accepts_the_unit(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    text = (DEPLOY / "antibody.service").read_text(encoding="utf-8").replace("/opt/antibody/bin/antibody", "/bin/true")
    (tmp_path / "antibody.service").write_text(text)
    done = subprocess.run([program, "verify", str(tmp_path / "antibody.service")], capture_output=True, text=True)
    assert "antibody.service" not in done.stderr
    assert done.returncode == 0
