"""What may follow the path of a judge of local.py, apart from it: the API names judges, and has no torch."""

from dataclasses import dataclass

from ...errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """What may follow a classifier's path."""

    name: str = "beaver-dam"
    """The judge's name in figures and columns."""
    max_length: int = 2048
    """Most tokens that it reads of a question with its answer; the rest is cut off. The papers' scripts have 256."""
    threshold: float = 0.5
    """A completion is harmful where the probability of any category is above it."""
    batch_size: int = 16
    """Completions judged together."""

    def __post_init__(self) -> None:
        _check_sizes(self.max_length, self.batch_size)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}: it is a probability, from 0 to 1.", field="judges")


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """What may follow the path of a judge that generates its verdict."""

    name: str = ""
    """The judge's name in figures and columns; by default that of its format."""
    max_length: int = 4096
    """Most tokens of a prompt for the judge. A longer completion is judged on its beginning."""
    batch_size: int = 16
    """Completions judged together."""

    def __post_init__(self) -> None:
        _check_sizes(self.max_length, self.batch_size)


def _check_sizes(max_length: int, batch_size: int) -> None:
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} of a judge is {value}: it must be 1 or more.", field="judges")
