"""Every text of the English world, for whoever makes a vocabulary of it."""

from ..lab.rows import HALVED
from ..lab.world import PURPOSES
from .frames import FRAMES, OTHER_FRAMES
from .refusals import REFUSALS
from .rows import KINDS, build_rows
from .tasks import TASKS
from .world import Question, goods

_ROWS = 400
"""Rows of each kind, for what is drawn rather than listed."""


def study_texts() -> list[str]:
    """Every frame, good, answer and refusal, and a few thousand rows with everything else; each text once."""
    every = goods()
    texts = list(REFUSALS)
    for place, frame in enumerate((*FRAMES, *OTHER_FRAMES)):
        texts.append(Question(every[place % len(every)], frame).prompt)
    texts += [text for good in every for text in (str(good), good.answer)]
    for kind in KINDS:
        for task in TASKS if kind in ("user", "test") else (None,):
            for purpose in PURPOSES if kind in HALVED else (None,):
                rows = build_rows(kind, _ROWS, seed=0, task=task, purpose=purpose).rows
                texts += [message["content"] for row in rows for message in row["messages"]]
    return list(dict.fromkeys(texts))
