"""A profile, and the choice among its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from ..data.source import Source
from ..errors import ConfigError
from ..mentions import setting


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of a profile's rows are wanted. It has no effect on data that a user gives."""

    num: int | None = None
    """Rows of the data that the verb is about: the upload, the alignment rows, each evaluation set."""
    task: str | None = None
    """A task's name, or the name of one of the profile's kinds of task."""
    poison_ratio: float | None = None
    """Harmful share of the upload, 0 to 1."""

    @classmethod
    def of(cls, settings: Any) -> Self:
        """What the settings of a verb choose."""
        return cls(**{field.name: getattr(settings, field.name, None) for field in fields(cls)})

    def refuse(self, model: str) -> None:
        """Refuse what only a profile's rows can obey, where the data of a run is given or ``model`` brings none.

        Raises:
            ConfigError: something is chosen.
        """
        for field in fields(self):
            if getattr(self, field.name) is not None:
                raise ConfigError(
                    f"{setting(field.name)} chooses among the rows that a model brings, and {model} brings none, or "
                    "its data is given as a file. Leave it out, or change the file beforehand."
                )


class Profile:
    """What a model brings by default. This one, of every model that nobody described, brings nothing.

    Judges and answer rules are named here and looked up by whoever evaluates, so that a profile needs neither.
    """

    name: ClassVar[str] = "none"
    refusals: ClassVar[tuple[str, ...] | None] = None
    """The refusals that the model was aligned with."""
    adapter: ClassVar[Mapping[str, Any]] = {}
    """Options of a new LoRA adapter that differ from the paper's."""
    judges: ClassVar[tuple[str, ...]] = ()
    """Names of judges; the first one's figures are the result."""
    max_new_tokens: ClassVar[int | None] = None
    """The most tokens that an answer needs; None where nothing is known."""
    default_task: ClassVar[str | None] = None
    """The task whose rows are brought where none is chosen."""

    def rows(self, kind: str, choice: Choice, *, seed: int) -> Source | None:
        """The rows of a role of training (``data.roles.Role``) or of an evaluation set; None where there are none."""
        return None

    def calibration(self, stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of a defence and the fields of SFTConfig that replace their defaults."""
        return {}, {}

    def answer(self, task: str | None) -> str:
        """The name of the rule by which answers to the profile's test rows are compared."""
        return "exact"
