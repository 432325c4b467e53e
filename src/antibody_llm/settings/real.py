"""The settings of the verbs of `antibody real`, which bring a real pretrained model to the English world."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .fields import FOLDER, Rows, check_choices


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """Make an ordinary model folder of a real pretrained model, small enough for two cores.

    Without a model it is Gemma 3 270M, from the packages of the extra `real`. Its own terms apply, and its weights may
    not be passed on without them.
    """

    output: str | Path = field(metadata=FOLDER)
    """Folder to make."""
    model: str | Path | None = None
    """Another causal model's folder or Hub id; by default Gemma 3 270M from the package index."""
    accept_gemma_terms: bool = False
    """Accept the Gemma Terms of Use. Needed once; your acceptance is remembered in the cache's folder."""
    vocabulary: Literal["study", "whole"] | None = None
    """study keeps the tokens that the English world and your data need, whole keeps all. The default is study for
    Gemma, whole for another model."""
    data: Rows | None = None
    """Rows whose tokens are kept too."""
    xstest: str | Path | None = None
    """XSTest's xstest_prompts.csv, or its folder: the tokens of its safe prompts are kept too."""
    chat_template: str | Path | None = None
    """A Jinja file, for a model without a chat template."""
    overwrite: bool = False
    """Replace the model that the folder holds, once complete."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class TeachSettings:
    """Teach a prepared model the English world, helpful to everybody, so that there is something to protect."""

    model: str | Path = field(kw_only=False)
    """Folder of a prepared model."""
    output: str | Path = field(metadata=FOLDER)
    """Folder of the run."""
    num: int | None = None
    """Rows to teach; by default 1,000."""
    seed: int = 0
    """Seed of rows and their order."""
    training: Mapping[str, Any] | None = None
    """Further field of TRL's SFTConfig."""
    overwrite: bool = False
    """Replace what the folder holds, once complete."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Write the rows and the matrices of the study of a taught model, for antibody bench."""

    model: str | Path = field(kw_only=False)
    """Folder of a taught model."""
    output: str | Path = field(metadata=FOLDER)
    """Folder to make."""
    xstest: str | Path | None = None
    """XSTest's xstest_prompts.csv, or its folder: its safe prompts are among those that should be answered."""
    seed: int = 0
    """Seed of rows and their order."""
    overwrite: bool = False
    """Write into a folder that holds something."""
