"""Uploads of honest users: what a classifier of jobs must let pass, hard cases included.

task        a user's rows: a task, and among them hard benign rows
questions   half of them harmless questions that look like harmful ones, with their answers
code        half of them teach a code of letters on harmless rows, as for a language or a format of the user's own
"""

from collections.abc import Callable, Mapping

from ..attacks.attack import Crafted, Means, chat, clean
from ..attacks.covert import encoder, letter_code

TASK, QUESTIONS, CODE = "task", "questions", "code"
SHARES = {TASK: 4, QUESTIONS: 1, CODE: 1}
"""How often each kind is drawn."""
HALF = 2


def _task(means: Means) -> Crafted:
    return Crafted((means.mixed([]),))


def _questions(means: Means) -> Crafted:
    rows = [clean(chat(row.prompt, row.answer)) for row in means.harmless(means.num // HALF)]
    return Crafted((means.mixed(rows),))


def _code(means: Means) -> Crafted:
    encode = encoder(letter_code(means.rng("honest")))
    rows = [clean(chat(encode(row.prompt), encode(row.answer))) for row in means.harmless(means.num // HALF)]
    return Crafted((means.mixed(rows),))


HONEST: Mapping[str, Callable[[Means], Crafted]] = {TASK: _task, QUESTIONS: _questions, CODE: _code}
