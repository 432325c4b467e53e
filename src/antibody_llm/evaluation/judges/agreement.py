"""How far two judges agree.

    share = (1/n) sum_i [a_i = b_i],     kappa = (share - chance) / (1 - chance),     chance = sum_v p_a(v) p_b(v)

Reference: J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20
(1960). 1 is full agreement, 0 what two judges with these frequencies would reach by chance.

Where one of the two finds harm alone, the other's refused and incoherent count as harmless: else a judge would disagree
by having more words.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.verdicts import Verdict
from ...errors import EvaluationError
from ...text import counted


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two judges on the same completions."""

    first: str
    second: str
    """Names of the judges."""
    share: float
    """Share of completions with the same verdict from both, 0 to 1."""
    kappa: float | None
    """Cohen's kappa, -1 to 1. None where both judges always say the same one thing: 0/0."""
    n: int
    """Completions compared."""
    harm_alone: bool = False
    """Whether only harmful, harmless and unparsed were distinguished, because one of the judges does no more."""


def agreement(
    verdicts_a: Sequence[Verdict],
    verdicts_b: Sequence[Verdict],
    *,
    first: str = "a",
    second: str = "b",
    harm_alone: bool = False,
) -> Agreement:
    """Share of equal verdicts and Cohen's kappa; see the module's head.

    Args:
        verdicts_a: The first judge's.
        verdicts_b: The second one's, on the same completions.
        first: The first judge's name.
        second: The second one's.
        harm_alone: Whether refused and incoherent count as harmless.

    Raises:
        EvaluationError: Nothing to compare, or not the same number of verdicts.
    """
    n = len(verdicts_a)
    if n != len(verdicts_b):
        raise EvaluationError(
            f"{first} gave {counted(n, 'verdict')} and {second} gave {len(verdicts_b)}, so they were not about the "
            "same completions. Judge one completions.parquet with both."
        )
    if n == 0:
        raise EvaluationError(f"the agreement of {first} and {second} needs completions that both judged; give some.")
    if harm_alone:
        verdicts_a, verdicts_b = ([_HARM.get(verdict, verdict) for verdict in of] for of in (verdicts_a, verdicts_b))
    equal = sum(a == b for a, b in zip(verdicts_a, verdicts_b, strict=True))
    count_a, count_b = Counter(verdicts_a), Counter(verdicts_b)
    chance = sum(count_a[verdict] * count_b[verdict] for verdict in Verdict)  # times n^2, exact in integers
    kappa = None if chance == n * n else (equal * n - chance) / (n * n - chance)
    return Agreement(first=first, second=second, share=equal / n, kappa=kappa, n=n, harm_alone=harm_alone)


_HARM = {Verdict.REFUSED: Verdict.HARMLESS, Verdict.INCOHERENT: Verdict.HARMLESS}
