"""``antibody serve`` as functions: what is wrong with the settings, and the server's process."""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import AntibodyError, ConfigError
from ..evaluation.judges.own import is_own
from ..evaluation.judges.registry import JUDGES, PLACED
from ..files import reason, try_lock
from ..parsing import nearest
from ..text import quoted
from .app import create_app, make_context
from .auth import first_key
from .beside import processes
from .blobs import Blobs
from .database.engine import Database
from .defences import load_defences
from .loading import named_model
from .moderation import LAB_MODELS, make_moderator
from .settings import DefenceSettings, ServerSettings
from .traces import lacking
from .working.executor import stage_environment

GRACE_SECONDS = 30
"""Seconds that requests in progress have to finish when the process is asked to end."""
KEEP_ALIVE_SECONDS = 75
"""Seconds that an idle connection stays open. Clients poll every few seconds, and drop a connection after five idle
ones: a server that closes it at that moment loses the request that is on its way."""


def offered(names: Sequence[str], *, configured: bool) -> dict[str, Any]:
    """Settings for models that are named one by one.

    Args:
        names: Names of the models.
        configured: Whether the operator has a file of settings, which says all else.
    """
    changes: dict[str, Any] = {"models": tuple(map(named_model, names))}
    if not configured and all(name in LAB_MODELS for name in names):
        # An adapter under the paper's weights refuses 19 % of the lab's harmless questions: the gate would hold it.
        changes["defence"] = DefenceSettings(name="antibody-posterior")
    return changes


def problems(settings: ServerSettings) -> list[str]:
    """What keeps the server from doing all that its settings say; empty where nothing does.

    A home folder that is not there yet is tried out under another name beside its place, which is removed again.
    """
    if settings.home.exists():
        return _problems(settings)
    parent = next(folder for folder in settings.home.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".antibody-check-", dir=parent) as tried:
            return _problems(replace(settings, home=Path(tried)))
    except OSError as error:
        return [f"home: {settings.home} cannot be made ({reason(error)}). Name a folder that can be written."]


def _problems(settings: ServerSettings) -> list[str]:
    found: list[str] = []
    for check in (_models, _gate, _defence, _moderation, _storage, _cluster, _telemetry):
        try:
            found += check(settings)
        except AntibodyError as error:
            found.append(str(error))
    return found


def _models(settings: ServerSettings) -> list[str]:
    if not settings.models:
        return ["models: none is offered. Name one, such as lab."]
    found = []
    for model in settings.models:
        if why := _absent(model.path or model.name, here=settings.worker.count > 0):
            found.append(f"models: {model.name}: {why}")
        if model.inference_key_env and not os.environ.get(model.inference_key_env):
            found.append(
                f"models: {model.name}: the variable {model.inference_key_env} (inference_key_env) is not set. Set it."
            )
    return found


def _absent(model: str, *, here: bool) -> str:
    """Why a model cannot be loaded; empty where it can, as far as its files say.

    Args:
        model: A folder, Hub id or packaged name.
        here: Whether jobs run on this machine: a Hub id must be downloaded then, since a job reaches no network.
    """
    if model in LAB_MODELS:
        return ""
    if Path(model).is_absolute():
        there = (Path(model) / "config.json").exists()
        return "" if there else f"{model} is no model's folder (no config.json). Correct its path."
    if "/" not in model:
        return f"{quoted(model)} is neither a packaged model nor a folder{nearest(model, LAB_MODELS)} Correct it."
    if not here:
        return ""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        downloaded = isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return f"{quoted(model)} is neither a folder nor a Hub id. Correct it."
    return "" if downloaded else f"it is not on this machine, and a job reaches no network. Run: hf download {model}"


def _gate(settings: ServerSettings) -> list[str]:
    """Without a verdict nothing is released, so that the gate needs its prompts and judges."""
    found = []
    gate = settings.gate
    others = [model.name for model in settings.models if (model.path or model.name) not in LAB_MODELS]
    for name in ("harmful_prompts", "benign_prompts"):
        path = getattr(gate, name)
        if path and not Path(path).is_file():
            found.append(f"gate.{name}: {path} is no file. Correct it.")
        if not path and others:
            found.append(
                f"gate.{name} is missing, and only the lab's models bring their own, so that no model made from "
                f"{', '.join(others)} would be released. Name a file of prompts."
            )
    if gate.audit and not Path(gate.audit).is_file():
        found.append(f"gate.audit: {gate.audit} is no file. Name the classifier.json of a training of the audit.")
    if not gate.judges and others:
        found.append(f"gate.judges is missing, so that no verdict on {', '.join(others)} is possible. Name a judge.")
    found += [
        f"gate.judges: {name!r} is no judge{nearest(name, JUDGES)} Judges: {', '.join(JUDGES)}."
        for name in gate.judges
        if name not in JUDGES and not _is_somewhere(name)
    ]
    found += [
        f"gate.judges: {name} is asked over a network, which a job's process does not reach, so that nothing would be "
        "released. Name a judge that runs on the worker's machine."
        for name in gate.judges
        if _is_remote(name)
    ]
    tried = [name for name in gate.judges if _is_somewhere(name) and not _is_remote(name)]
    return found + [why for name in tried if (why := _unmade(name))]


def _is_remote(name: str) -> bool:
    placed = PLACED.get(name.partition("=")[0])
    return placed is not None and placed.place == "URL"


def _is_somewhere(name: str) -> bool:
    """Whether a name says where a judge is: one of the operator's own, or a published one."""
    return is_own(name) or name.partition("=")[0] in PLACED


def _unmade(name: str) -> str:
    """What keeps a judge that is somewhere from being made, in a process like those that will make it."""
    done = subprocess.run(
        [sys.executable, "-c", _MAKE, name], capture_output=True, text=True, cwd="/", env=stage_environment()
    )
    return done.stdout.strip() if done.returncode == 0 else f"gate.judges: {name} ends its process. Try it by hand."


_MAKE = """
import os, sys
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the judge prints is no problem of it
from antibody_llm.errors import AntibodyError
from antibody_llm.evaluation.judges.registry import make_judge
try:
    make_judge(sys.argv[1])
except AntibodyError as error:
    print("gate.judges:", error, file=answer)
"""


def _defence(settings: ServerSettings) -> list[str]:
    from .errors import ApiError

    policy, catalogue = settings.defence, load_defences(settings.home)
    try:
        catalogue.check(policy.name, policy.options, method="supervised", allowed=())
        for name in policy.allowed:
            catalogue.check(name, {}, method="supervised", allowed=())
    except ApiError as error:
        return [error.message]
    return []


def _moderation(settings: ServerSettings) -> list[str]:
    make_moderator(settings)
    return []


def _storage(settings: ServerSettings) -> list[str]:
    database = Database(settings.database_url)
    if not database.reachable():
        return [f"database: {database.url.render_as_string()} cannot be reached. Check its URL and that it runs."]
    database.close()
    blobs = Blobs(settings.blob_url)
    key = blobs.new_key("check")
    try:
        with blobs.writing(key) as file:
            file.write(b"ok")
        blobs.delete(key)
    except Exception as error:  # each store has its own kinds
        return [f"blobs: {settings.blob_url} cannot be written ({type(error).__name__}: {error}). Check its rights."]
    return []


def _cluster(settings: ServerSettings) -> list[str]:
    """A worker elsewhere says itself what it lacks."""
    if settings.worker.executor == "local" or not settings.worker.count:
        return []
    from .working import cluster  # Ray is an extra

    return cluster.lacking(settings.worker)


def _telemetry(settings: ServerSettings) -> list[str]:
    missing = lacking() if settings.telemetry.otlp else ""
    return [missing] if missing else []


def serve(settings: ServerSettings, say: Callable[[str], None]) -> None:
    """Answer requests until the process is asked to end.

    Args:
        settings: What the operator set.
        say: Prints a line for the operator.

    Raises:
        ConfigError: something keeps the server from starting; names all of it.
    """
    with _alone(settings.home), _listening(settings) as listener:
        say(f"starting; everything is kept in {settings.home}")
        if found := problems(settings):
            raise ConfigError(" ".join(found))
        context = make_context(settings, moderator=make_moderator(settings))
        try:
            secret = first_key(context.database, settings.organization)
            if secret is not None:
                say(f"operator key (shown once): {secret}")
            with processes(context) as routers:
                app = create_app(context, routers=routers)
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                port = listener.getsockname()[1]
                say(f"http://{host}:{port}/v1 offers {', '.join(model.name for model in settings.models)}")
                _log_to_stderr()
                config = uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=False,  # ours has the request's id and no query
                    server_header=False,
                    timeout_graceful_shutdown=GRACE_SECONDS,
                    timeout_keep_alive=KEEP_ALIVE_SECONDS,
                    h11_max_incomplete_event_size=64 * 1024,
                )
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            context.database.close()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """The home folder, made where it is missing, for this server alone.

    Raises:
        ConfigError: it cannot be made, or another server is in it.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        os.chmod(home, 0o700)  # the database and the blobs are its user's alone
        descriptor = os.open(home, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"home: {home} cannot be used ({reason(error)}). Name another folder.") from None
    try:
        held = True
        with suppress(OSError):  # a file system without locks
            held = try_lock(descriptor)
        if not held:
            raise ConfigError(f"home: another server runs in {home}. Stop it, or name another folder.")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """A socket at the server's address, before anything is printed or started that would be in vain.

    Raises:
        ConfigError: the address is another's, or not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))  # who connects before uvicorn listens is refused
        except OSError as error:
            raise ConfigError(
                f"port: {settings.host}:{settings.port} cannot be listened on ({reason(error)}). Name another port, or "
                "stop what listens there."
            ) from None
        yield listener


class _Lines(logging.Formatter):
    """One JSON object a line, also for records that are none."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its time and level."""
        text = super().format(record)
        try:
            entry = json.loads(text)
        except ValueError:
            entry = {"event": "message", "message": text}
        at = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        return json.dumps({"time": at, "level": record.levelname.lower(), "logger": record.name} | entry)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    for name in ("antibody.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
