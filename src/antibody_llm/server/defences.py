"""The fine-tuning defences by name, with their options, without importing them: they bring torch.

``describe`` is run once by a process of its own and its answer is kept in the server's folder.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ConfigError
from ..files import write_text
from ..parsing import nearest, parse_value
from ..text import quoted
from .errors import ApiError

KINDS: dict[str, Any] = {"float": float, "int": int, "bool": bool, "str": str}
DPO_DEFENCES = ("sft", "antibody-posterior")
"""Defences that preference training has, none with an option; another one is refused there, never ignored."""


@dataclass(frozen=True)
class Defences:
    """Name of a defence to its options, and the option's type as text."""

    options: Mapping[str, Mapping[str, str]]

    def check(self, name: str, options: Mapping[str, Any], *, method: str, allowed: tuple[str, ...]) -> None:
        """Refuse a defence that does not exist or is not offered, and options that it does not have.

        Raises:
            ApiError: 400, with the place in the request.
        """
        names = [each for each in self.options if not allowed or each in allowed]
        if method == "dpo":
            names = [each for each in names if each in DPO_DEFENCES]
        if name not in names:
            known = name in self.options
            why = f"not offered for method {method}" if known else "no such defence"
            there = ", ".join(names) or "none"
            raise ApiError(
                400,
                f"defence {quoted(name)}: {why}{'.' if known else nearest(name, names)} Defences: {there}.",
                code="unknown_defence",
                param="defence.name",
            )
        fields = {} if method == "dpo" else self.options[name]
        for option, value in options.items():
            where = f"defence.options.{option}"
            if option not in fields:
                raise ApiError(
                    400,
                    f"{name}.{option}: no such option{nearest(option, fields)} Options: {', '.join(fields) or 'none'}.",
                    code="unknown_parameter",
                    param=where,
                )
            try:
                parse_value(KINDS.get(fields[option], Any), value, f"{name}.{option}", infinite=True)
            except ConfigError as error:
                raise ApiError(400, str(error), code="invalid_value", param=where) from None


def load_defences(home: Path) -> Defences:
    """The catalogue of this version, from the server's folder or, the first time, from a process that imports it.

    Raises:
        ConfigError: that process failed.
    """
    path = home / f"defences-{__version__}.json"
    try:
        return Defences(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        pass
    code = "from antibody_llm.server.defences import describe; describe()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise ConfigError(f"the defences cannot be listed: {done.stderr.strip()[-500:]}") from None
    home.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found))
    return Defences(found)


def describe() -> None:
    """Print the fine-tuning defences and their options as JSON. Imports torch."""
    from dataclasses import fields
    from typing import get_type_hints

    from ..defences.catalogue import CATALOGUE

    found: dict[str, dict[str, str]] = {}
    for (stage, name), kind in CATALOGUE.items():
        if stage == "finetuning":
            hints = get_type_hints(kind.options)
            found[name] = {each.name: getattr(hints[each.name], "__name__", "Any") for each in fields(kind.options)}
    print(json.dumps(found))
