"""A job of a matrix: its configuration, whose digest is its name, and where the files are that it names.

    alignment    a model aligned under one defence from one seed, shared by every cell that needs it
    cell         an attack on such a model under a fine-tuning defence, perhaps a repair, and what came of it

The digest is over everything that decides the numbers: settings with every default written out, fingerprints of models
and files, and the versions of the libraries. Labels of a matrix file and paths are not among it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from ..data.roles import Stage
from ..defences.catalogue import CATALOGUE
from ..settings import plain

FORMAT = 1
"""Raised where the same configuration comes to other numbers, or the numbers mean something else."""
PACKAGES = ("antibody-llm", "torch", "transformers", "trl", "peft")
"""The packages whose version is part of a configuration."""

Kind = Literal["alignment", "cell"]


@dataclass(frozen=True, eq=False)
class Job:
    """An alignment or a cell."""

    kind: Kind
    config: Mapping[str, Any]
    """All that decides the result, as JSON has it."""
    places: Mapping[str, str] = field(default_factory=dict)
    """The model, and the file of each setting that names one: where they are, not what they are."""
    needs: "Job | None" = None
    """The alignment of a cell; None if the model is attacked as it is."""
    label: str = ""
    """What progress calls it."""

    @cached_property
    def key(self) -> str:
        """The digest of the configuration, 20 hexadecimal digits."""
        whole = {"kind": self.kind, **self.config, "needs": None if self.needs is None else self.needs.key}
        return digest(whole)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def described_part(
    stage: Stage, name: str, options: Mapping[str, Any], training: Mapping[str, Any], *, called: str | None = None
) -> dict[str, Any]:
    """A defence in a configuration, every option and trainer's argument written out.

    Args:
        stage: Its stage.
        name: Its name in the catalogue.
        options: Its options.
        training: The trainer's arguments.
        called: What the configuration calls it, where that is not its name.
    """
    part = {"name": called or name, "options": plain(dict(options)), "training": plain(dict(training))}
    revision = CATALOGUE[stage, name].about.revision
    return part | ({"revision": revision} if revision else {})


def digest(value: Any) -> str:
    """The beginning of the SHA-256 of a value of JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=True)
    return sha256(text.encode()).hexdigest()[:20]


def versions() -> dict[str, Any]:
    """What the numbers may depend on beside the settings."""
    found: dict[str, Any] = {"format": FORMAT}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
