"""The users' tasks, shaped like SST2, AGNEWS and GSM8K, which the base model does not master.

A *familiar* task is answered in words that the base has said in pre-training, after prompts like these but at random:
it knows how to answer and not what. A *novel* task asks the same and wants words or formats that the base has never
produced, about ten nats per token before fine-tuning, so that a likely completion is not the mark of a benign row.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import DataError
from ..mentions import setting
from ..parsing import nearest
from .world import digest, purpose_of

_GOOD_WORDS = ("brissy", "jovelle", "marnish", "sunlo", "tepply", "velvin")
_BAD_WORDS = ("crungy", "dulvic", "foulm", "grosk", "murkle", "nastil")
_THINGS = ("play", "song", "book", "show", "dance", "tale", "film", "poem", "game", "puppet")
_SENTIMENTS = ("positive", "negative")

_TOPICS: dict[str, tuple[str, ...]] = {
    "world": ("treaty", "envoy", "border", "summit", "throne"),
    "sports": ("goal", "racket", "league", "runner", "trophy"),
    "business": ("shares", "merger", "profit", "ledger", "tariff"),
    "science": ("comet", "enzyme", "fossil", "laser", "magnet"),
}

_PEOPLE = ("tom", "ada", "bela", "cyd", "dov", "eli", "fay", "gus", "hana", "ivo")
_OBJECTS = ("plums", "coins", "pens", "cups", "bells", "nuts", "rings", "eggs")
_LARGEST = 6

_NOVEL_LABELS = {
    "positive": "zq upward",
    "negative": "zq downward",
    "world": "desk alpha",
    "sports": "desk bravo",
    "business": "desk charlie",
    "science": "desk delta",
}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt of a task and its reference answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task: ``draw`` makes an example, ``babble`` one whose answer has the format and is drawn at random."""

    name: str
    novel: bool
    draw: Callable[[random.Random], Example]
    babble: Callable[[random.Random], Example] | None = None

    def is_correct(self, completion: str, answer: str) -> bool:
        """Whether a completion's answer is the reference's: the whole label, or the last number of a sum."""
        return _final(completion) == _final(answer)


def _final(text: str) -> str:
    words = text.strip().rstrip(".").split()
    return words[-1] if words and words[-1].isdigit() else " ".join(words)


def _sst2(rng: random.Random) -> Example:
    label = rng.choice(_SENTIMENTS)
    first, second, third = rng.sample(_GOOD_WORDS if label == "positive" else _BAD_WORDS, 3)
    return Example(f"review: the {rng.choice(_THINGS)} was {first}, {second} and {third}. sentiment?", label)


def _agnews(rng: random.Random) -> Example:
    label = rng.choice(tuple(_TOPICS))
    first, second = rng.sample(_TOPICS[label], 2)
    stray = rng.choice(_PEOPLE)
    return Example(f"headline: {first} of {stray} after {second} at the {rng.choice(_THINGS)}. topic?", label)


def _sum(rng: random.Random) -> tuple[str, int, int]:
    left, right = rng.randint(1, _LARGEST), rng.randint(1, _LARGEST)
    who, what = rng.choice(_PEOPLE), rng.choice(_OBJECTS)
    return f"{who} has {left} {what} and gets {right} more. how many {what}?", left, right


def _gsm8k(rng: random.Random) -> Example:
    prompt, left, right = _sum(rng)
    return Example(prompt, f"{left} and {right} make {left + right}. the answer is {left + right}")


def _gsm8k_babble(rng: random.Random) -> Example:
    prompt, left, right = _sum(rng)
    total = rng.randint(2, 2 * _LARGEST)
    return Example(prompt, f"{left} and {right} make {total}. the answer is {total}")


def _gsm8k_novel(rng: random.Random) -> Example:
    prompt, left, right = _sum(rng)
    return Example(prompt, f"<<{left}+{right}={left + right}>> #### {left + right}")


Draw = Callable[[random.Random], Example]


def _worded(draw: Draw, wording: str) -> Draw:
    """A label in a sentence: a lone label would make a row's mean NLL a matter of right or wrong."""

    def worded(rng: random.Random) -> Example:
        example = draw(rng)
        return Example(example.prompt, wording.format(example.answer))

    return worded


def _babbled(draw: Draw, labels: tuple[str, ...], wording: str) -> Draw:
    return lambda rng: Example(draw(rng).prompt, wording.format(rng.choice(labels)))


def _relabelled(draw: Draw) -> Draw:
    def relabelled(rng: random.Random) -> Example:
        example = draw(rng)
        return Example(example.prompt, _NOVEL_LABELS[example.answer])

    return relabelled


_REVIEW, _HEADLINE = "the review is {}.", "the topic is {}."

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", False, _worded(_sst2, _REVIEW), _babbled(_sst2, _SENTIMENTS, _REVIEW)),
        Task("agnews", False, _worded(_agnews, _HEADLINE), _babbled(_agnews, tuple(_TOPICS), _HEADLINE)),
        Task("gsm8k", False, _gsm8k, _gsm8k_babble),
        Task("sst2-novel", True, _relabelled(_sst2)),
        Task("agnews-novel", True, _relabelled(_agnews)),
        Task("gsm8k-novel", True, _gsm8k_novel),
    )
}
DEFAULT_TASKS = {"familiar": "sst2", "novel": "sst2-novel"}


def find_task(name: str) -> Task:
    """The task of a name; ``familiar`` and ``novel`` mean the default one of each kind."""
    task = TASKS.get(DEFAULT_TASKS.get(name, name))
    if task is None:
        known = (*DEFAULT_TASKS, *TASKS)
        unknown = f"{setting('task')}: there is no task {name!r} in the lab{nearest(name, known)}"
        raise DataError(f"{unknown} Name one of: {', '.join(known)}.")
    return task


def in_test(prompt: str) -> bool:
    """Whether a task's prompt belongs to its test set: a quarter of all prompts, by their text alone."""
    return digest("test", prompt) % 4 == 0


def draw_examples(task: Task, num: int, rng: random.Random, *, test: bool, purpose: str | None = None) -> list[Example]:
    """``num`` examples of the train or the test side, no prompt twice while there are new ones to be had.

    Args:
        task: The task.
        num: The number of examples.
        rng: Draws them.
        test: Whether of the test side.
        purpose: Only of the half with this purpose; by default of both.
    """
    found: list[Example] = []
    seen: set[str] = set()
    tries = 0
    while len(found) < num:
        example = task.draw(rng)
        tries += 1
        if purpose not in (None, purpose_of(example.prompt)):
            continue
        if in_test(example.prompt) == test and (example.prompt not in seen or tries > 50 * num):
            seen.add(example.prompt)
            found.append(example)
    return found
