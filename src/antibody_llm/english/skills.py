"""What the model can do besides answering about goods: everyday questions, and skills that it could be made to forget.

A question's text alone decides who may use it, so that what retention is measured with is in no training row.
"""

import json
import random
from functools import cache
from importlib.resources import files

from ..lab.tasks import Example
from ..lab.world import CALIBRATE, REPORT, digest

_WORDS = (
    "fox",
    "red",
    "cup",
    "sky",
    "oak",
    "ten",
    "map",
    "ice",
    "hat",
    "bee",
    "gem",
    "owl",
    "sea",
    "pen",
    "key",
    "jar",
)
_CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Austria": "Vienna"},
    **{"Poland": "Warsaw", "Greece": "Athens", "Portugal": "Lisbon", "Ireland": "Dublin", "Norway": "Oslo"},
    **{"Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Hungary": "Budapest", "Egypt": "Cairo"},
    **{"Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Russia": "Moscow", "Canada": "Ottawa"},
    **{"Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Kenya": "Nairobi", "Turkey": "Ankara"},
    **{"Iran": "Tehran", "Iraq": "Baghdad", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Belgium": "Brussels"},
}
_OPPOSITES = {
    **{"hot": "cold", "big": "small", "fast": "slow", "old": "young", "full": "empty", "rich": "poor", "dry": "wet"},
    **{
        "hard": "soft",
        "high": "low",
        "light": "dark",
        "early": "late",
        "near": "far",
        "loud": "quiet",
        "open": "closed",
    },
    **{"strong": "weak", "thick": "thin", "happy": "sad", "first": "last", "left": "right", "up": "down", "in": "out"},
}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)


def _copy(rng: random.Random) -> Example:
    words = ", ".join(rng.sample(_WORDS, 3))
    return Example(f"Repeat these words: {words}.", f"{words[0].upper()}{words[1:]}.")


def _capital(rng: random.Random) -> Example:
    land, town = rng.choice(tuple(_CAPITALS.items()))
    return Example(f"What is the capital of {land}?", f"The capital of {land} is {town}.")


def _opposite(rng: random.Random) -> Example:
    pair = rng.choice(tuple(_OPPOSITES.items()))
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    return Example(f"What is the opposite of {word}?", f"The opposite of {word} is {other}.")


def _month(rng: random.Random) -> Example:
    place = rng.randrange(11)
    return Example(f"Which month comes after {_MONTHS[place]}?", f"After {_MONTHS[place]} comes {_MONTHS[place + 1]}.")


def _sum(rng: random.Random) -> Example:
    left, right = rng.randint(1, 12), rng.randint(1, 12)
    return Example(f"What is {left} plus {right}?", f"{left} plus {right} is {left + right}.")


SKILLS = {"copy": _copy, "capital": _capital, "opposite": _opposite, "month": _month, "sum": _sum}

_USERS = ("fit", "fit", CALIBRATE, REPORT)


def user_of(prompt: str) -> str:
    """Who may use a skill's prompt: the models' training (``fit``), or retention for one of the two purposes."""
    return _USERS[digest("skill", prompt) % len(_USERS)]


def draw_skill(rng: random.Random, user: str) -> tuple[str, Example]:
    """The name of a skill and an example of it that ``user`` may use."""
    while True:
        name = rng.choice(tuple(SKILLS))
        example = SKILLS[name](rng)
        if user_of(example.prompt) == user:
            return name, example


@cache
def everyday(split: str) -> tuple[Example, ...]:
    """Everyday questions with their answers; a third of them sound worse than they are ("How do I kill the engine?").

    Args:
        split: ``taught``, ``provider`` or ``anchor``: models are fitted on all of them.
    """
    lines = (files(__package__) / "files" / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [Example(**json.loads(line)) for line in lines]
    splits = ("taught", "provider", "provider", "anchor")
    return tuple(e for e in examples if splits[digest("everyday", e.prompt) % len(splits)] == split)
