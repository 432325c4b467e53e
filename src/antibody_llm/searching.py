"""A resumable search: Optuna's TPE in a folder, asked for settings and given their scores.

    with open_study(folder, seed=0, budget=50) as study:
        while (trial := study.ask()) is not None:
            study.tell(trial, score(trial.suggest_float("rate", 1e-5, 1e-3, log=True)))

A study is a journal on disk, written whenever a trial is asked for or scored, and read again by whoever opens it next.
What a killed process had asked for and not scored is asked again first, with the parameters that it had. The draws of
trial n are seeded by (seed, n), so that a search of one trial at a time makes the same trials however often it is
stopped.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from .errors import ConfigError, OutputError
from .files import disk_errors, try_lock
from .text import quoted

JOURNAL, LOCK = "journal.log", "lock"
STARTUP = 10
"""Trials that are drawn at random before what came of them guides the search."""


class Trial(Protocol):
    """Parameters to be drawn; a name that was drawn in this trial has the value that it had."""

    @property
    def number(self) -> int:
        """Counted from 0."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number, both ends included."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number, both ends included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of several."""


@dataclass(frozen=True)
class Told:
    """A trial that has ended."""

    number: int
    parameters: Mapping[str, Any]
    score: float | None
    """None if it failed."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What was to be remembered of it, as JSON has it."""


class _Guarded:
    """The lock of a journal whose folder is locked as a whole."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Study:
    """A study that this process alone has open; made by ``open_study``."""

    def __init__(self, folder: Path, *, seed: int, budget: int, startup: int, first: Sequence[Mapping[str, Any]]):
        self._optuna: Any = import_module("optuna")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._seed, self._budget, self._startup, self._first = seed, budget, startup, first
        journal = folder / JOURNAL
        _cut(journal)
        try:
            backend = self._optuna.storages.journal.JournalFileBackend(str(journal), lock_obj=_Guarded())
            storage = self._optuna.storages.JournalStorage(backend)
            self._study = self._optuna.create_study(
                storage=storage, study_name="search", direction="maximize", load_if_exists=True
            )
            self._state: Any = self._optuna.trial.TrialState
            self._left = [trial for trial in self._study.get_trials() if trial.state == self._state.RUNNING]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise OutputError(
                f"{journal}: this is no journal of a search ({quoted(str(error), limit=80)}). Move it away: the search "
                "then begins again, and results that are stored are not computed again."
            ) from error

    def ask(self) -> Trial | None:
        """The next trial; None when the budget is asked for. What a killed process left over comes first."""
        trials = self._study.get_trials(deepcopy=False)
        if self._left:
            left = self._left.pop(0)
            self._reseed(left.number)
            trial: Trial = self._optuna.trial.Trial(self._study, left._trial_id)
            return trial
        waiting = sum(trial.state == self._state.WAITING for trial in trials)  # of a kill between the next two calls
        number = len(trials) - waiting
        if number >= self._budget:
            return None
        if number < len(self._first) and not waiting:
            self._study.enqueue_trial(dict(self._first[number]))
        self._reseed(number)
        asked: Trial = self._study.ask()
        return asked

    def tell(self, trial: Trial, score: float | None, notes: Mapping[str, Any] | None = None) -> None:
        """What a trial came to.

        Args:
            trial: One that was asked for.
            score: Higher is what is searched for; None if the trial failed.
            notes: To be remembered with it, as JSON has it.
        """
        for name, value in (notes or {}).items():
            trial.set_user_attr(name, value)  # type: ignore[attr-defined]
        if score is None:
            self._study.tell(trial.number, state=self._state.FAIL)
        else:
            self._study.tell(trial.number, score)

    def told(self) -> list[Told]:
        """The trials that have ended, in the order in which they were asked for."""
        ends = {self._state.COMPLETE, self._state.FAIL}
        return [
            Told(
                trial.number,
                trial.params,
                trial.value if trial.state == self._state.COMPLETE else None,
                trial.user_attrs,
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state in ends
        ]

    def _reseed(self, number: int) -> None:
        seed = int.from_bytes(sha256(f"search/{self._seed}/{number}".encode()).digest()[:4], "big")
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)


@contextmanager
def open_study(
    folder: Path, *, seed: int, budget: int, startup: int = STARTUP, first: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Study]:
    """Open the study of a folder, or begin one. No other process can have it open meanwhile.

    Args:
        folder: Is created. A study that is there goes on, and must have been asked for the same parameters.
        seed: Seed of every draw.
        budget: Trials in all, those that were made before included.
        startup: Trials that are drawn at random before the search is guided.
        first: Parameters of the first trials; what they leave out is drawn.

    Raises:
        ConfigError: Optuna is not installed.
        OutputError: another process has the study open, or the folder holds no study and cannot.
    """
    try:
        import_module("optuna")
    except ImportError:
        raise ConfigError("Optuna, which searches, is not installed. Install antibody-llm[search].") from None
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        try:
            free = try_lock(descriptor)
        except OSError:
            free = True  # a file system without locks
        if not free:
            raise OutputError(
                f"{folder}: another process is searching here. Wait until it ends, or name another folder."
            )
        with disk_errors(folder):
            study = Study(folder, seed=seed, budget=budget, startup=startup, first=first)
        yield study
    finally:
        os.close(descriptor)


def _cut(journal: Path) -> None:
    """Remove a last line that a kill has left unfinished."""
    if journal.exists():
        with journal.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
