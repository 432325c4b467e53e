"""What a verb reports while it runs, who hears it, and how a listener asks the run to end.

    finetune("lab-aligned", output="runs/tuned", listen=print)

A verb and everything below it reports with ``emit``; the verb's ``listen`` is called with each event, in the thread of
the verb. The command line draws bars from them and writes them to a file; a server would store them. Where
nobody listens, notices go to the logger ``antibody`` and other events are dropped. Of several processes of one run, the
first one alone reports.

A listener that returns ``Wish.STOP`` ends the run: training after the step under way, with a checkpoint of it, and
whatever works through batches after the batch. The verb raises ``Stopped``, and the same call goes on from there, to
the same bits. An exception of a listener ends the verb as one of the verb's own would.
"""

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum, auto
from typing import Any, ClassVar, ParamSpec, TypeVar

from .mentions import Spell, in_python, mentioned, pieces, spelled
from .text import cut, escaped

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("antibody")


class Level(StrEnum):
    """How much a notice matters."""

    INFO = "info"
    WARNING = "warning"
    """The result is not what one might take it for; it is also in the result's ``warnings``."""


class Wish(Enum):
    """What a listener may answer."""

    STOP = auto()


class Stopped(Exception):
    """A verb ended because its listener asked for it; the same call goes on from where it ended.

    Args:
        message: What had been done, and what remains.
        step: How many optimiser steps the checkpoint holds; None where nothing was kept.
    """

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


# -- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened. Each kind is a class of its own."""

    kind: ClassVar[str]
    """Its name in JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that JSON lacks (NaN) is null."""
        return {"event": self.kind} | {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far a piece of work has come. The first of each piece has what was done before; training goes on with
    ``StepDone``."""

    kind = "progress"
    what: str
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """An optimiser step was made."""

    kind = "step_done"
    step: int
    """From 1; a run that goes on counts from its start."""
    max_steps: int
    epoch: float
    """Passes over the data so far."""
    loss: float
    """The loss of this step, as the defence defines it."""
    learning_rate: float
    """The rate with which this step was made."""
    tokens: int
    """Tokens in this step's rows, prompts and completions, over all processes."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The defence's own."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """Something that the user should know."""

    kind = "notice"
    message: str
    """May mention settings (``mentions.setting``); ``spelled`` is for reading."""
    level: Level
    field: str | None = None
    """The setting that it is about."""

    def spelled(self, spell: Spell = in_python) -> str:
        """One printable line, with every setting spelled as a surface's users write it."""
        return cut(spelled(pieces(self.message, escaped), spell))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the message in Python's spelling."""
        return super().to_json() | {"message": self.spelled()}


@dataclass(frozen=True, kw_only=True)
class RowsSkipped(Event):
    """Rows of one source that are left out."""

    kind = "rows_skipped"
    source: str
    lines: tuple[int, ...]
    why: str
    """``too long`` or ``control tokens``."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """From here a run that is stopped or killed goes on."""

    kind = "checkpoint_saved"
    step: int
    path: str
    planned: bool = True
    """Whether the run saves at this step anyway; False where only a stop that was asked for made it."""


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """What an evaluation, a screening or a set of anchors came to."""

    kind = "measured"
    values: Mapping[str, float]
    """The value of each measure, by its name."""


Listener = Callable[[Event], Wish | None]


# -- who hears them ------------------------------------------------------------------------------------------------


class _Ear:
    """A listener, and whether it has asked to stop."""

    def __init__(self, listen: Listener) -> None:
        self.listen, self.asked = listen, False


class _Verb:
    """A verb that runs: who hears it, and what it has warned of."""

    def __init__(self, ear: _Ear) -> None:
        self.ear = ear
        self.warnings: list[str] = []


_running: ContextVar[_Verb | None] = ContextVar("antibody_verb", default=None)


@contextmanager
def listening(listen: Listener | None = None) -> Iterator[None]:
    """Inside, events go to ``listen``; without one, to who listens outside. Warnings are counted from here on."""
    outer = _running.get()
    if listen is not None:
        ear = _Ear(listen)
    else:
        ear = _Ear(_to_the_logger) if outer is None else outer.ear
    token = _running.set(_Verb(ear))
    try:
        yield
    finally:
        _running.reset(token)


def reports(verb: Callable[P, R]) -> Callable[P, R]:
    """Decorates a verb: what happens in it is heard by the ``listen`` that it is called with."""

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with listening(kwargs.get("listen")):  # type: ignore[arg-type]
            return verb(*args, **kwargs)

    return called


def emit(event: Event) -> None:
    """Report an event to the listener of the running verb."""
    verb = _running.get() or _Verb(_Ear(_to_the_logger))
    if isinstance(event, Notice) and event.level is Level.WARNING:
        recall([event.spelled()])
    if os.environ.get("RANK", "0") == "0" and verb.ear.listen(event) is Wish.STOP:
        verb.ear.asked = True


def inform(message: str) -> None:
    """Report something that the user may want to know.

    Args:
        message: May mention settings.
    """
    emit(Notice(message=message, level=Level.INFO, field=next(iter(mentioned(message)), None)))


def warn(message: str) -> None:
    """Report that a result is not what one might take it for.

    Args:
        message: May mention settings.
    """
    emit(Notice(message=message, level=Level.WARNING, field=next(iter(mentioned(message)), None)))


def report_progress(what: str, done: int, total: int) -> None:
    """Report progress, at a place where the verb can end and leave nothing half-written.

    Raises:
        Stopped: the listener asked for it.
    """
    emit(Progress(what=what, done=done, total=total))
    if stop_asked():
        raise Stopped(f"stopped at {what}, {done} of {total}, as asked. The same call does it again.")


def stop_asked() -> bool:
    """Whether the listener of the running verb has asked to stop."""
    verb = _running.get()
    return verb is not None and verb.ear.asked


def warned() -> tuple[str, ...]:
    """What the running verb has warned of so far, each once, in Python's spelling."""
    verb = _running.get()
    return () if verb is None else tuple(verb.warnings)


def recall(warnings: list[str]) -> None:
    """Count these among what the running verb has warned of, as where an earlier part of the run did."""
    verb = _running.get()
    if verb is not None:
        verb.warnings += [text for text in warnings if text not in verb.warnings]


def _to_the_logger(event: Event) -> None:
    if isinstance(event, Notice):
        log.log(logging.WARNING if event.level is Level.WARNING else logging.INFO, "%s", event.spelled())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
