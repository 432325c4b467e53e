"""What an attack is: from clean rows and what the attacker has to hand to the jobs that are uploaded.

Of ``num`` rows over all jobs exactly round(poison_ratio * num) are the attacker's, whatever they hold: rows with harm
in them, or harmless ones that are there to do harm. The others are clean rows, each taken once. The truth of a row
travels beside it and never in it:

    is_poison      the attacker made the row, or chose it
    is_harmful     it holds harm, in clear or in code; of a pair, the preferred answer does
    kind           what the attacker calls it
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, DataError
from ..mentions import setting
from .asking import PLAIN, Asking, Row
from .kit import Exchange, Kit

if TYPE_CHECKING:
    from .own_copy import OwnCopy

T = TypeVar("T")
Truth = dict[str, Any]
Marked = tuple[Row, Truth]
Suspicion = Callable[[Sequence[Row]], Sequence[float]]
"""What the provider's screening makes of rows; higher is more suspect."""


class Access(StrEnum):
    """What an attack takes beside an upload of rows."""

    ASKING = "asking"
    """The attacker asks the tuned model themselves: in a form, with a system message, in code."""
    JOBS = "jobs"
    """Several jobs in a row on one model."""
    PREFERENCES = "preferences"
    """Training on pairs (DPO)."""
    COPY = "copy"
    """A copy of the model that is fine-tuned, or of one like it."""
    SCREENING = "screening"
    """The provider's evidence on each row that is tried."""


@dataclass(frozen=True)
class Job:
    """``rows[i]`` is uploaded, ``truth[i]`` is for the experimenter alone."""

    rows: list[Row]
    truth: list[Truth]


@dataclass(frozen=True)
class Crafted:
    """What an attack made: the jobs in their order, each trained on the model that the one before left."""

    jobs: tuple[Job, ...]
    asking: Asking = PLAIN

    @property
    def num_rows(self) -> int:
        """Over all jobs."""
        return sum(len(job.rows) for job in self.jobs)

    @property
    def num_poison(self) -> int:
        """Over all jobs."""
        return sum(truth["is_poison"] for job in self.jobs for truth in job.truth)


@dataclass(frozen=True, kw_only=True)
class Means:
    """What the attacker works with. All draws are a function of ``seed`` and of what is drawn."""

    clean: Sequence[Row]
    """A user's rows, of which the upload is mostly made."""
    kit: Kit
    num: int
    """Rows over all jobs."""
    poison_ratio: float
    seed: int = 0
    suspicion: Suspicion | None = None
    copy: "OwnCopy | None" = None

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"{setting('num')} is {self.num}: an upload has at least one row.")
        if not 0 <= self.poison_ratio <= 1:
            raise ConfigError(f"{setting('poison_ratio')} is {self.poison_ratio}: give a share, 0 to 1.")

    @property
    def num_poison(self) -> int:
        """How many of the rows are the attacker's."""
        return round(self.poison_ratio * self.num)

    def rng(self, *purpose: object) -> random.Random:
        """Draws for one purpose."""
        return random.Random("/".join(map(str, ("attacks", *purpose, self.seed))))

    def harmful(self, num: int) -> list[Exchange]:
        """Harmful exchanges in random order: each once, and again only when all have been taken."""
        return self._taken(self.kit.harmful, num, "harmful")

    def harmless(self, num: int) -> list[Exchange]:
        """Harmless exchanges, in the same way."""
        return self._taken(self.kit.harmless, num, "harmless")

    def _taken(self, pool: Sequence[T], num: int, purpose: str) -> list[T]:
        if num and not pool:
            raise DataError(f"there are no {purpose} rows to attack with. Give some.")
        rng, taken = self.rng(purpose), list[T]()
        while len(taken) < num:
            taken += rng.sample(pool, min(len(pool), num - len(taken)))
        return taken

    def benign(self, num: int) -> list[Row]:
        """Clean rows, each once.

        Raises:
            DataError: there are fewer.
        """
        if len(self.clean) < num:
            raise DataError(
                f"{len(self.clean)} clean rows where {num} are needed. Give more, or change {setting('num')} or "
                f"{setting('poison_ratio')}."
            )
        return self.rng("clean").sample(list(self.clean), num)

    def mixed(self, poison: Sequence[Marked]) -> Job:
        """One job: the poison among clean rows, shuffled."""
        return self.shuffled([*poison, *map(clean, self.benign(self.num - len(poison)))])

    def shuffled(self, pairs: Sequence[Marked], *purpose: object) -> Job:
        """One job of these rows, in random order."""
        order = list(pairs)
        self.rng("order", *purpose).shuffle(order)
        return Job([row for row, _ in order], [truth for _, truth in order])


def chat(prompt: str, answer: str, *, system: str = "") -> Row:
    """A row of one exchange."""
    first = [{"role": "system", "content": system}] if system else []
    asked = {"role": "user", "content": prompt}
    return {"messages": [*first, asked, {"role": "assistant", "content": answer}]}


def poisoned(row: Row, kind: str, *, harm: bool) -> Marked:
    """A row of the attacker's, with its truth."""
    return row, {"is_poison": True, "is_harmful": harm, "kind": kind}


def clean(row: Row) -> Marked:
    """A row of the user's, with its truth."""
    return row, {"is_poison": False, "is_harmful": False, "kind": "clean"}


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An entry of the catalogue."""

    name: str
    paper: str
    """arXiv id or venue; "ours" where there is none."""
    summary: str
    """One sentence."""
    options: type
    """A frozen dataclass: the attacker's knobs, with their ranges."""
    craft: Callable[[Means, Any], Crafted]
    needs: tuple[Access, ...] = ()
    poison_ratio: float = 0.2
    """Unless another is asked for."""
