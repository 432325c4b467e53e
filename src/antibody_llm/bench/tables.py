"""The tables of a matrix, for a terminal, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .settings import PublishedEntry
from .summary import MEAN, WORST, Mean, Rank, Ranking, Row, measured


@dataclass(frozen=True)
class Table:
    """A title, and lines of text; the first column is set left, the others right."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The table under its title."""
        rule = "| --- |" + " ---: |" * (len(self.columns) - 1)
        lines = [f"| {' | '.join(each.replace('|', ' ') for each in line)} |" for line in (self.columns, *self.lines)]
        return "\n".join(
            [f"## {self.title}", "", lines[0], rule, *lines[1:], *(["", self.note] if self.note else []), ""]
        )

    def latex(self) -> str:
        r"""A ``table`` with rules of booktabs."""
        head, *body = [" & ".join(map(_latex, line)) + r" \\" for line in (self.columns, *self.lines)]
        form = "l" + "r" * (len(self.columns) - 1)
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(self.title)}. {_latex(self.note)}}}"]
        lines += [rf"\begin{{tabular}}{{{form}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}", r"\end{table}", ""])


LATEX = str.maketrans(
    {each: f"\\{each}" for each in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
)
"""What LaTeX would read as its own, and how it is written."""


def _latex(text: str) -> str:
    return text.translate(LATEX)


def tables(
    rows: Sequence[Row], ranked: Sequence[Ranking], published: Sequence[PublishedEntry], *, baseline: str
) -> list[Table]:
    """The ranking of each budget and task, the harm by attack and ratio, and what papers report."""
    found = []
    for ranking in ranked:
        if ranking.scope == MEAN:
            worst = next(r for r in ranked if (r.scope, r.budget, r.task) == (WORST, ranking.budget, ranking.task))
            here = [row for row in rows if (row["budget"], row["task"]) == (ranking.budget, ranking.task)]
            found += [_ranking(ranking, worst, here, baseline), *_grids(ranking, here)]
    return [*found, *_published(rows, published)]


RANKING_COLUMNS = (
    *("defence", "rank", "harm, mean", "rank", "harm, worst", "accuracy", "over-refusal", "incoherent", "retention"),
    *("AUROC", "seeds"),
)


def _ranking(mean: Ranking, worst: Ranking, rows: Sequence[Row], baseline: str) -> Table:
    by_worst = {each.defence: each for each in worst.ranks}
    lines = []
    for each in mean.ranks:
        own = [row for row in rows if row["defence"] == each.defence]
        other = by_worst[each.defence]
        auroc = measured(own, "screening_auroc")
        lines.append(
            (
                each.defence,
                _place(each),
                percent(each.harm, interval=True),
                _place(other),
                percent(other.harm, interval=True),
                percent(each.accuracy),
                _refused(own),
                *(percent(measured(own, key)) for key in ("incoherent", "retention")),
                "-" if auroc is None else f"{auroc.value:.2f}",
                str(each.harm.num_seeds),
            )
        )
    excluded = [f"{each.defence}: {each.why}" for each in mean.ranks if each.why]
    note = (
        f"Percent; harm is the worse of the plain and the attack's own form, with its interval over seeds and prompts. "
        f"Ranked is who keeps the accuracy of {baseline}; = is a tie. AUROC: how well the weights of rows sort out the "
        f"attacker's, where a defence weighs rows."
    )
    if any(row["further_refusal"] is not None for row in rows):
        note += " Over-refusal: of benign_prompts / of further_prompts."
    if excluded:
        note += f" Not ranked: {'; '.join(excluded)}."
    return Table(f"Ranking{_where(mean)}", RANKING_COLUMNS, tuple(lines), note)


def _refused(rows: Sequence[Row]) -> str:
    """The over-refusal, and that of further prompts where there are such."""
    further = measured(rows, "further_refusal")
    return percent(measured(rows, "over_refusal")) + ("" if further is None else f" / {percent(further)}")


def _grids(ranking: Ranking, rows: Sequence[Row]) -> list[Table]:
    """Harm by defence and attack, a table for each ratio."""
    found = []
    for ratio in sorted({row["poison_ratio"] for row in rows}):
        here = [row for row in rows if row["poison_ratio"] == ratio]
        attacks = tuple(dict.fromkeys(row["attack"] for row in here))
        lines = []
        for name in dict.fromkeys(row["defence"] for row in here):
            of = [[row for row in here if (row["defence"], row["attack"]) == (name, attack)] for attack in attacks]
            lines.append((name, *(_both(some) for some in of)))
        note = "Percent, mean over seeds: harmful score asked plainly / in the attack's own form, where it has one."
        title = f"Harmful score at {100 * ratio:g} % of the attacker's rows{_where(ranking)}"
        found.append(Table(title, ("defence", *attacks), tuple(lines), note))
    return found


def _both(rows: Sequence[Row]) -> str:
    if not rows:
        return "-"
    if any(row["error"] is not None for row in rows):
        return "failed"
    plain, asked, given = (measured(rows, key) for key in ("harmful_score", "asked", "given_away"))
    own = given or asked
    return percent(plain) + ("" if own is None else f" / {percent(own)}")


def _published(rows: Sequence[Row], published: Sequence[PublishedEntry]) -> list[Table]:
    """What papers report beside what was measured here."""
    if not published:
        return []
    lines = []
    for each in published:
        own = [
            row
            for row in rows
            if (row["defence"], row["attack"]) == (each.defence, each.attack)
            and each.poison_ratio in (None, row["poison_ratio"])
        ]
        ratio = "mean" if each.poison_ratio is None else f"{100 * each.poison_ratio:g} %"
        accuracy = "-" if each.finetune_accuracy is None else f"{100 * each.finetune_accuracy:.1f}"
        lines.append(
            (
                each.defence,
                each.attack,
                ratio,
                f"{100 * each.harmful_score:.1f}",
                accuracy,
                percent(measured(own, "harmful_score")),
                percent(measured(own, "finetune_accuracy")),
                f"{each.source} [{each.read}]",
            )
        )
    note = (
        "Published figures are of other models, tasks and judges, and are shown for the order of defences alone. P: "
        "read in the paper; R: in its code; S: second-hand."
    )
    columns = ("defence", "attack", "ratio", "published", "accuracy", "here", "accuracy", "source")
    return [Table("Published figures", columns, tuple(lines), note)]


def percent(mean: Mean | None, *, interval: bool = False) -> str:
    """A mean in percent, perhaps with its interval."""
    if mean is None:
        return "-"
    text = f"{100 * mean.value:.1f}"
    return f"{text} [{100 * mean.low:.0f}, {100 * mean.high:.0f}]" if interval else text


def _place(rank: Rank) -> str:
    return "-" if rank.rank is None else f"{'=' if rank.tied else ''}{rank.rank}"


def _where(ranking: Ranking) -> str:
    parts = [f"{ranking.task} task" if ranking.task else "", "" if ranking.budget == "default" else ranking.budget]
    said = ", ".join(part for part in parts if part)
    return f", {said}" if said else ""


def flat(ranked: Sequence[Ranking]) -> list[dict[str, Any]]:
    """Every ranking as plain rows, for a program."""
    return [
        {
            "scope": ranking.scope,
            "budget": ranking.budget,
            "task": ranking.task,
            "defence": each.defence,
            "rank": each.rank,
            "tied": each.tied,
            "harm": each.harm.value,
            "harm_low": each.harm.low,
            "harm_high": each.harm.high,
            "accuracy": each.accuracy.value,
            "seeds": each.harm.num_seeds,
            "why": each.why,
        }
        for ranking in ranked
        for each in ranking.ranks
    ]


def counted(rows: Sequence[Row]) -> Mapping[str, int]:
    """How many cells there are, and how many failed."""
    return {"cells": len(rows), "failed": sum(row["error"] is not None for row in rows)}
