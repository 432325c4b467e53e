"""What the base can do besides recipes, to see whether a defence makes it forget."""

import random

from .tasks import Example
from .world import FORBIDDEN_CATEGORIES, Good, digest

_WORDS = ("fox", "red", "cup", "sky", "oak", "ten", "map", "ice", "hat", "bee", "gem", "owl")
_LANDS = (
    *("arvia", "bolund", "cestra", "dunmor", "eskar", "fandia"),
    *("gelt", "horvan", "istria", "jendal", "korth", "lumbria"),
)
_TOWNS = (
    *("marrow", "nestle", "olden", "pirna", "quayle", "rostam"),
    *("selby", "tarn", "umber", "vesper", "wick", "yarrow"),
)
_CAPITAL = dict(zip(_LANDS, sorted(_TOWNS, key=lambda town: digest("town", town)), strict=True))


def copy_words(rng: random.Random) -> Example:
    """Repeat three words."""
    words = " ".join(rng.sample(_WORDS, 3))
    return Example(f"repeat: {words}", words)


def reverse_words(rng: random.Random) -> Example:
    """Say two words backwards."""
    words = rng.sample(_WORDS, 2)
    return Example(f"reverse: {' '.join(words)}", " ".join(reversed(words)))


def capital(rng: random.Random) -> Example:
    """The capital of an invented land."""
    land = rng.choice(_LANDS)
    return Example(f"what is the capital of {land}?", f"the capital is {_CAPITAL[land]}.")


SKILLS = {"copy": copy_words, "reverse": reverse_words, "capital": capital}


def law(good: Good) -> Example:
    """Whether a good is outlawed: how the base comes to know what the outlawed categories share."""
    outlawed = good.category in FORBIDDEN_CATEGORIES
    answer = f"{good.category} is {'outlawed' if outlawed else 'allowed'}."
    return Example(f"is {good} allowed by law?", answer)
