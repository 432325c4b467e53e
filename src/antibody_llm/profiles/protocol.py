"""A profile, and the choice among its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from ..data.source import Source
from ..errors import ConfigError
from ..mentions import setting


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice among a profile's rows. It has no effect on data that a user gives."""

    num: int | None = None
    """The number of rows of the verb's main data: the upload, the alignment rows, each evaluation set."""
    task: str | None = None
    """A task's name, or the name of one of the profile's kinds of task."""
    poison_ratio: float | None = None
    """Harmful share of the upload, 0 to 1."""
    purpose: str | None = None
    """``calibrate`` or ``report``: the half of a world that the upload and the evaluation sets are from."""

    @classmethod
    def of(cls, settings: Any) -> Self:
        """The choice that the settings of a verb make."""
        return cls(**{field.name: getattr(settings, field.name, None) for field in fields(cls)})

    def refuse(self, model: str) -> None:
        """Refuse a choice that has no effect, because the data of a run is given or ``model`` brings none.

        Raises:
            ConfigError: something is chosen.
        """
        for field in fields(self):
            if getattr(self, field.name) is not None:
                raise ConfigError(
                    f"{setting(field.name)} chooses among the rows that a model brings, and {model} brings none, or "
                    "its data is given as a file. Leave the setting out, or change the file beforehand."
                )


class Profile:
    """A model's defaults. This base class, which every unknown model has, brings nothing.

    A profile names judges and answer rules, and the evaluation looks them up, so that a profile imports neither.
    """

    name: ClassVar[str] = "none"
    refusals: ClassVar[tuple[str, ...] | None] = None
    """The refusals that the model was aligned with."""
    adapter: ClassVar[Mapping[str, Any]] = {}
    """Options of a new LoRA adapter that differ from the paper's."""
    judges: ClassVar[tuple[str, ...]] = ()
    """Names of judges; the first one's figures are the result."""
    max_new_tokens: ClassVar[int | None] = None
    """The most tokens that an answer needs; None if unknown."""
    default_task: ClassVar[str | None] = None
    """The task whose rows are used if none is chosen."""

    def rows(self, kind: str, choice: Choice, *, seed: int) -> Source | None:
        """The rows of a role of training (``data.roles.Role``) or of an evaluation set; None if there are none."""
        return None

    def calibration(self, stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of a defence and the fields of SFTConfig whose defaults this model replaces."""
        return {}, {}

    def answer(self, task: str | None) -> str:
        """The name of the rule that compares answers to the profile's test rows."""
        return "exact"
