"""The JSON files of a model's folder, which a stranger may have written.

Whatever they hold, reading them ends in a value of the expected type or in a ``ModelError`` that names file and field.
"""

import json
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..text import escaped, quoted

MAX_BYTES = 64 * 2**20
"""The most bytes of such a file. The largest known, the shard index of a model with 256 experts a layer, has 9 MiB."""
_MAX_LINE = 300
"""The most characters of a library's message."""
_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def first_line(error: BaseException) -> str:
    """A library's message, as far as it is one for readers: it may quote the file."""
    line = str(error).strip().split("\n")[0] or type(error).__name__
    return escaped(line[:_MAX_LINE])


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``.

    Raises:
        ModelError: it is too large, cannot be read, or holds something else.
    """
    try:
        if (num_bytes := path.stat().st_size) > MAX_BYTES:
            raise ModelError(
                f"{path}: {num_bytes / 2**20:.0f} MiB, where {MAX_BYTES // 2**20} are the most. Save the model again."
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({first_line(error)}). Save the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object. Save the model again.")
    return value


def field(entries: dict[str, Any], path: Path, key: str, *kinds: type) -> Any:
    """The value of ``key`` in what ``path`` holds; None where it is absent or null.

    Args:
        entries: The object, or a part of it.
        path: The file, for the message.
        key: Its name.
        kinds: What the value may be. A whole number is a number; true and false are none.

    Raises:
        ModelError: it is something else.
    """
    value = entries.get(key)
    if value is None or (isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)):
        return value
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**53 else _refuse(path, key, value, kinds)
    return _refuse(path, key, value, kinds)


def texts(entries: dict[str, Any], path: Path, key: str) -> list[str] | str | None:
    """The value of ``key`` where that is to be a text or a list of texts."""
    value: list[str] | str | None = field(entries, path, key, str, list)
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        _refuse(path, key, value, (str, list))
    return value


def _refuse(path: Path, key: str, value: object, kinds: tuple[type, ...]) -> Any:
    expected = " or ".join(
        "a list of texts" if kinds == (str, list) and kind is list else _WORDS[kind] for kind in kinds
    )
    raise ModelError(f"{path}: {key} is {quoted(value)}, not {expected}. Put it right, or save the model again.")
