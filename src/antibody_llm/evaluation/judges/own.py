"""A judge of the user's own, named by where its class or function is: ``module:NAME`` or ``FILE.py:NAME``."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import ConfigError
from ...parsing import nearest
from ...text import quoted
from .protocol import Judge


def is_own(name: str) -> bool:
    """Whether a name says where a judge is, rather than what it is called."""
    return ":" in name.partition("=")[0]  # behind an equals sign is the place of a published judge, perhaps a URL


def file_of(name: str) -> str:
    """The file that a name says; empty where it says a module."""
    place = name.rpartition(":")[0]
    return place if place.endswith(".py") else ""


def own_judge(name: str) -> Judge:
    """The judge that ``module:NAME`` or ``FILE.py:NAME`` makes, called without arguments.

    Raises:
        ConfigError: there is no such file, module or name, or what it makes is no judge.
    """
    place, _, attribute = name.rpartition(":")
    try:
        module = _from_file(Path(place)) if place.endswith(".py") else import_module(place)
    except Exception as error:  # whatever code of the user raises
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"judge {quoted(name)}: {place} cannot be imported ({why}).", field="judges") from None
    made: Callable[[], Any] | None = getattr(module, attribute, None)
    if not callable(made):
        known = [each for each in vars(module) if not each.startswith("_")]
        problem = f"{place} has no class or function {quoted(attribute)}{nearest(attribute, known)}"
        raise ConfigError(f"judge {quoted(name)}: {problem}", field="judges")
    try:
        judge = made()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"judge {quoted(name)}: {attribute}() failed ({why}).", field="judges") from None
    missing = [each for each in ("name", "verdicts", "judge") if not hasattr(judge, each)]
    if missing:
        problem = f"{attribute}() makes an object without {', '.join(missing)}"
        raise ConfigError(f"judge {quoted(name)}: {problem}: see the guide to a judge of your own.", field="judges")
    found: Judge = judge
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    # A name that shadows nothing: dataclasses, pickle and type hints look their module up.
    spec = spec_from_file_location(f"antibody_own_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # its name ends in .py
    module = sys.modules[spec.name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module
