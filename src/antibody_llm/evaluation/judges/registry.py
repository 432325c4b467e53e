"""Judges by name, as the command line, YAML and Python write them.

    lab                              a judge of ``JUDGES``
    llama-guard=PATH                 a judge of ``PLACED``, with a folder, a Hub id or a URL
    chat=URL#model=NAME,timeout=30   and with options of it, by the name of their field
    FILE.py:NAME, module:NAME        a judge of the user's own (own.py)

A judge of preferences, which compares two answers, is chat=URL#model=NAME.

To add one: a class with the attributes of ``protocol.Judge``, and a line in ``JUDGES`` or ``PLACED``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...errors import ConfigError
from ...mentions import setting
from ...parsing import nearest, parse_options
from ...text import quoted
from .english import EnglishJudge
from .formats import FORMATS
from .keywords import KeywordJudge
from .lab import LabJudge
from .local_options import ClassifierOptions, GuardOptions
from .own import is_own, own_judge
from .preference import PreferenceJudge, PreferenceOptions
from .protocol import Judge
from .remote import ChatJudge, ChatOptions, ModerationJudge, RemoteOptions

JUDGES: dict[str, Callable[[], Judge]] = {
    "lab": LabJudge,
    "english": EnglishJudge,
    "keywords": KeywordJudge,  # a weak baseline
}


class Placed(NamedTuple):
    """A judge that is somewhere."""

    make: Callable[[str, Any], Any]
    """From its place and its options."""
    options: type
    place: str
    """What the place is, in a message."""


def _classifier(place: str, options: ClassifierOptions) -> Judge:
    from .local import BeaverDam  # torch

    return BeaverDam(place, options)


def _guard(place: str, options: GuardOptions, *, form: str) -> Judge:
    from .local import GuardModel  # torch

    return GuardModel(place, form, options)


PLACED: dict[str, Placed] = {
    "beaver-dam": Placed(_classifier, ClassifierOptions, "PATH"),
    **{
        name: Placed(partial(_guard, form=name), GuardOptions, "PATH")
        for name, form in FORMATS.items()
        if name != "one-word"
    },
    "moderation": Placed(ModerationJudge, RemoteOptions, "URL"),
    "chat": Placed(ChatJudge, ChatOptions, "URL"),
}


def make_judge(name: str) -> Judge:
    """The judge of that name; see the module's head.

    Raises:
        ConfigError: There is none (the nearest name is offered), or its place or its options are wrong.
        ModelError: Its folder is not there.
    """
    if is_own(name):
        return own_judge(name)
    kind, equals, _ = name.partition("=")
    names = [*JUDGES, *(f"{each}={placed.place}" for each, placed in PLACED.items())]
    if kind in JUDGES and not equals:
        return JUDGES[kind]()
    if kind in JUDGES:
        raise ConfigError(f"judge {quoted(name)}: {kind} takes no place. Write {kind}.", field="judges")
    if kind not in PLACED:
        unknown = f"judge {quoted(name)}: no such judge"
        raise ConfigError(f"{unknown}{nearest(kind, [*JUDGES, *PLACED])} Judges: {', '.join(names)}.", field="judges")
    made: Judge = _made(name, PLACED[kind], field="judges")
    return made


def make_preference_judge(name: str) -> PreferenceJudge:
    """The judge of preferences that ``chat=URL#model=NAME`` names.

    Raises:
        ConfigError: it names another kind of judge, or its URL or its options are wrong.
    """
    if name.partition("=")[0] != "chat":
        raise ConfigError(
            f"judge {quoted(name)}: it compares no answers. Name a chat model: chat=URL#model=NAME.",
            field="preference_judge",
        )
    made: PreferenceJudge = _made(name, _PREFERENCE, field="preference_judge")
    return made


_PREFERENCE = Placed(PreferenceJudge, PreferenceOptions, "URL")


def _made(name: str, placed: Placed, *, field: str) -> Any:
    """The judge of a name that has its place and its options in it."""
    kind, _, rest = name.partition("=")
    place, _, options = rest.partition("#")
    if not place:
        raise ConfigError(f"judge {quoted(name)}: it needs a place. Write {kind}={placed.place}.", field=field)
    return placed.make(place, parse_options(placed.options, kind, _options(name, options, field), group=field))


def as_judges(given: Sequence[str | Judge]) -> list[Judge]:
    """The judges, those that are named made.

    Raises:
        ConfigError: one is neither a name nor a judge, or has an unknown name.
    """
    if isinstance(given, str):
        raise ConfigError(f"{setting('judges')} is {quoted(given)}: it must be a list of judges.", field="judges")
    for each in given:
        if not isinstance(each, str) and (isinstance(each, type) or not callable(getattr(each, "judge", None))):
            raise ConfigError(f"{setting('judges')} holds {quoted(each)}: a judge is a name, or an object of your own.")
    return [make_judge(judge) if isinstance(judge, str) else judge for judge in given]


def _options(name: str, text: str, field: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip() or key.strip() in options:
            raise ConfigError(
                f"judge {quoted(name)}: {quoted(pair)} is no option, or given twice. Write #NAME=VALUE,NAME=VALUE.",
                field=field,
            )
        options[key.strip()] = value.strip()
    return options
