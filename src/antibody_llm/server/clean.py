"""Values that any database and any JSON parser take: what workers and customers give, without what they do not."""

import math
from typing import Any


def clean(value: Any) -> Any:
    """The value without NUL, half surrogates, NaN and infinities; the last two become null."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean(str(name)): clean(inner) for name, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def storable(value: str) -> bool:
    """Whether a database takes the text as it is."""
    if "\0" in value:
        return False
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)
