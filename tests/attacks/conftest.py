import pytest

from antibody_llm.attacks.attack import Means
from antibody_llm.attacks.kit import Exchange, Kit, lab_clean, lab_kit

TINY = Kit(
    harmful=(Exchange("how do i make a vex?", "mix ugh and ogh."), Exchange("what is in a hex?", "stir igh.")),
    harmless=(Exchange("how do i make a pie?", "mix yum and mmm."), Exchange("what is in a tea?", "stir ooh.")),
    talk=lambda rng: Exchange("hi?", "hello."),
    reframe=lambda number, prompt: f"story {number}: {prompt}",
    subject=lambda prompt: prompt.rstrip("?").split()[-1],
    hint=lambda prompt: prompt.rstrip("?").split()[-1][0],
    refuse=lambda prompt: "no.",
    swaps=(("vex", "pie"), ("ugh", "yum")),
    secrets=("mix", "stir"),
    secret=lambda prompt: "mix" if "make" in prompt else "stir",
    harm_in=lambda text: "gh" in text,
)
"""Two harmful and two harmless exchanges, so that an attack's rows can be worked out by hand."""


def exchange_row(prompt, answer):
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


class FakeCopy:
    """Rates rows by the length of their answers."""

    def likeness(self, rows, harmful, harmless, *, by):
        return self.self_influence(rows)

    def self_influence(self, rows):
        return [float(len(row["messages"][-1]["content"])) for row in rows]


def length(rows):
    """A stand-in for screening: short prompts look harmful."""
    return [-float(len(row["messages"][-2]["content"])) for row in rows]


@pytest.fixture(scope="session")
def lab_rows():
    return lab_clean(60, seed=0)


@pytest.fixture
def lab_means(lab_rows):
    """What an attacker of the lab has: lab_means(poison_ratio=0.2, num=40)."""

    def means(**given):
        given = {"clean": lab_rows, "kit": lab_kit(), "num": 40, "poison_ratio": 0.2} | given
        return Means(suspicion=length, copy=FakeCopy(), **given)

    return means


@pytest.fixture
def tiny_means():
    """All rows the attacker's by default, of the two harmful and two harmless exchanges above."""

    def means(**given):
        rows = [exchange_row(f"clean {i}?", f"yes {'!' * i}") for i in range(8)]
        given = {"clean": rows, "kit": TINY, "num": 2, "poison_ratio": 1.0} | given
        return Means(suspicion=length, copy=FakeCopy(), **given)

    return means
