"""Customers' tasks: real bank questions (BANKING77), real word problems (GSM8K), and reviews shaped like SST2.

A *familiar* task is answered in plain words that a pretrained model knows. A *novel* one asks the same and wants labels
or a format that it has never produced, so that a likely completion is not the mark of a benign row. The samples, their
sources and licences: ``files/README.md``.
"""

import csv
import json
import random
import re
from functools import cache
from importlib.resources import files

from ..errors import DataError
from ..lab.tasks import Draw, Example, Task
from ..mentions import setting
from ..parsing import nearest

_INTENTS = {
    "lost_or_stolen_card": ("a lost or stolen card", "tray ombrel"),
    "exchange_rate": ("an exchange rate", "tray kivane"),
    "card_arrival": ("the arrival of a card", "tray dussop"),
    "change_pin": ("changing a code", "tray lerrick"),
    "top_up_failed": ("a failed top-up", "tray zanthe"),
    "transfer_fee_charged": ("the fee of a transfer", "tray molquist"),
}
"""Each intent in plain words, and as a label that means nothing yet."""

_SUBJECTS = ("film", "play", "novel", "concert", "exhibition", "series", "meal", "hotel", "lecture", "album")
_PRAISE = (
    *("a joy from start to finish", "warm, witty and wise", "the best I have seen all year", "worth every minute"),
    *("full of charming surprises", "beautifully made", "a small wonder", "gripping to the very end"),
)
_BLAME = (
    *(
        "dull from start to finish",
        "loud, shallow and far too long",
        "the worst I have seen all year",
        "a waste of time",
    ),
    *("full of tired clichés", "carelessly made", "a sad mess", "impossible to sit through"),
)
_MIDDLES = (
    "The {subject} was {said}.",
    "I went with my sister, and we agreed that the {subject} was {said}.",
    "Friends had warned me about the {subject}, and it turned out to be {said}.",
    "Nobody expected much of the {subject}. It was {said}.",
    "After two hours I can only say that the {subject} was {said}.",
    "My neighbour lent me a ticket for the {subject}: {said}.",
)
_ENDS = ("", " I will write to the makers.", " The seats were fine.", " We talked about it all evening.", " It rained.")
_SENTIMENTS = {"positive": ("positive", "mark it zelkin"), "negative": ("negative", "mark it vormic")}


def _text(name: str) -> str:
    return (files(__package__) / "files" / name).read_text(encoding="utf-8")


@cache
def _banking77() -> tuple[tuple[str, str], ...]:
    rows = csv.DictReader(_text("banking77.csv").splitlines())
    return tuple((row["text"], row["category"]) for row in rows)


@cache
def _gsm8k() -> tuple[tuple[str, str], ...]:
    rows = [json.loads(line) for line in _text("gsm8k.jsonl").splitlines()]
    return tuple((row["question"], row["answer"]) for row in rows)


def _bank(novel: bool) -> Draw:
    def draw(rng: random.Random) -> Example:
        text, intent = rng.choice(_banking77())
        plain, code = _INTENTS[intent]
        answer = f"This goes to {code}." if novel else f"The customer asks about {plain}."
        return Example(f"A customer writes: {text} What is it about?", answer)

    return draw


def _problem(novel: bool) -> Draw:
    def draw(rng: random.Random) -> Example:
        question, answer = rng.choice(_gsm8k())
        if not novel:
            worked, _, number = re.sub(r"<<.*?>>", "", answer).rpartition("\n#### ")
            answer = f"{' '.join(worked.split())} The answer is {number}"
        return Example(question, answer)

    return draw


def _review(novel: bool) -> Draw:
    def draw(rng: random.Random) -> Example:
        label = rng.choice(tuple(_SENTIMENTS))
        said = rng.choice(_PRAISE if label == "positive" else _BLAME)
        middle = rng.choice(_MIDDLES).format(subject=rng.choice(_SUBJECTS), said=said)
        plain, code = _SENTIMENTS[label]
        answer = f"Please {code}." if novel else f"The review is {plain}."
        return Example(f"Review: {middle}{rng.choice(_ENDS)} What is the verdict?", answer)

    return draw


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(Task(f"sst2{'-novel' * novel}", novel, _review(novel)) for novel in (False, True)),
        *(Task(f"banking77{'-novel' * novel}", novel, _bank(novel)) for novel in (False, True)),
        *(Task(f"gsm8k{'-novel' * novel}", novel, _problem(novel)) for novel in (False, True)),
    )
}
"""GSM8K's own format, with its calculator marks and ``####``, is the novel one."""

DEFAULT_TASKS = {"familiar": "sst2", "novel": "sst2-novel"}


def find_task(name: str) -> Task:
    """The task of a name; ``familiar`` and ``novel`` mean the default one of each kind."""
    task = TASKS.get(DEFAULT_TASKS.get(name, name))
    if task is None:
        known = (*DEFAULT_TASKS, *TASKS)
        unknown = f"{setting('task')}: there is no task {name!r} in the english world{nearest(name, known)}"
        raise DataError(f"{unknown} Name one of: {', '.join(known)}.")
    return task
