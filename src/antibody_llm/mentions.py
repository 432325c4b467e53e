r"""How a message mentions a setting, so that each surface can spell it as its users write it.

    f"... it has none. Give {setting('harmful_data')}."

reads "Give harmful_data." in Python, "Give --harmful-data." on the command line and "Give harmful_data." with
``param`` set in an API's answer. An option of a defence, a field of the trainer's configuration or of an adapter is
written with its group: ``setting("options.tau", "0.3")`` is ``options={'tau': 0.3}`` or ``--set tau=0.3``.

Between the two marks, which are noncharacters of Unicode and so never text, are the name and, after a tab, a value.
"""

import re
from collections.abc import Callable

_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MENTION = re.compile(f"{_OPEN}([a-z0-9_.]+)(?:\t([^{_CLOSE}]*))?{_CLOSE}")

Spell = Callable[[str, str | None], str]
"""A setting's name (``harmful_data``, ``options.tau``) and the value it is to have, or None, to what a user writes."""


def setting(name: str, value: str | None = None) -> str:
    """A mention of a setting in a message.

    Args:
        name: The field of a verb's settings; with a group before it, a key of one: ``options.tau``.
        value: What to set it to, as one would write it; None where the message leaves that open.
    """
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}\t{value}{_CLOSE}"


def mentioned(message: str) -> list[str]:
    """The names of the settings that a message mentions, in order."""
    return [match[1] for match in _MENTION.finditer(message)]


def spelled(message: str, spell: Spell) -> str:
    """The message with every mention written as a surface's users write it."""
    return _MENTION.sub(lambda match: spell(match[1], match[2]), message)


def in_python(name: str, value: str | None = None) -> str:
    """A setting as a keyword argument: ``regime='lora'``, ``options={'tau': 0.3}``; without a value its name."""
    group, dot, key = name.rpartition(".")
    if not dot:
        return name if value is None else f"{name}={_literal(value)}"
    return f"{group}[{key!r}]" if value is None else f"{group}={{{key!r}: {_literal(value)}}}"


def pieces(message: str, clean: Callable[[str], str]) -> str:
    """The message with ``clean`` applied to everything but its mentions."""
    parts, at = [], 0
    for match in _MENTION.finditer(message):
        parts += [clean(message[at : match.start()]), match[0]]
        at = match.end()
    return "".join([*parts, clean(message[at:])])


def _literal(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return value if value in ("True", "False", "None") else repr(value)
    return value
