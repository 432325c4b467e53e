"""What other prompts change: two results files of the same cells, one of the whole world and one of a half, compared.

A measure of a defence in a setting is a mean over seeds, with the interval of ``summary.mean_over_seeds``: never
narrower than the seeds differ, nor than the number of prompts allows. Two are called different where their intervals
do not overlap, which is more cautious than a test of the difference.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from ..text import counted
from .cell import num_prompts
from .purpose import described, purpose_of
from .summary import Mean, mean_over_seeds

Row = Mapping[str, Any]
Key = tuple[Any, ...]

MEASURES = {
    "harmful score": ("harmful_score", "harmful-prompts"),
    "accuracy": ("finetune_accuracy", "test"),
    "over-refusal": ("over_refusal", "lookalike"),
}
"""The field of each heading, and the kind of row of its prompts."""
SETTING = ("defence", "stage", "alignment", "regime", "learning_rate", "budget", "task", "poison_ratio")
"""What a line is of."""
INTRODUCTION = """\
## What other prompts changed

Before: {before}. After: {after}, with the settings of today.

Percent, mean over seeds, in brackets the 95 % interval: Student's t over seeds, and never narrower than Wilson's over
the prompts of one evaluation, before and after
({numbers}).
*Differs*: the two intervals do not overlap. A half has half as many goods, so that an upload repeats its harmful
questions sooner. Stage, and what is not the default, is in brackets behind the name.

{verdict}
"""


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The list of differences as Markdown.

    Args:
        before: The content of a results.json of the whole world.
        after: That of one of a half, or of other settings on it.

    Raises:
        ConfigError: both are of the same part of the world, or they have no cell in common.
    """
    parts = [purpose_of(results["rows"], which) for results, which in ((before, "before"), (after, "after"))]
    if parts[0] == parts[1]:
        raise ConfigError(f"both results are of {described(parts[0])}: there is nothing to compare. Name another file.")
    old, new = (_means(results["rows"], part) for results, part in zip((before, after), parts, strict=True))
    both = [key for key in new if key in old]
    if not both:
        raise ConfigError("the two results have no cell in common. Name results of the same defences and settings.")
    lines = [_line(key, old[key], new[key]) for key in both]
    found = {name: [key for key in both if _differs(old[key][name], new[key][name])] for name in MEASURES}
    told = [f"{name} in {len(keys)}" for name, keys in found.items()]
    unpaired = [(len(old) - len(both), "before"), (len(new) - len(both), "after")]
    alone = "".join(f" {counted(num, 'setting')} has figures {when} alone." for num, when in unpaired if num)
    verdict = f"Of {counted(len(both), 'setting')} with figures of both, these differ: {', '.join(told)}.{alone}"
    numbers = "; ".join(
        f"{name} {num_prompts(kind, parts[0])} and {num_prompts(kind, parts[1])}"
        for name, (_, kind) in MEASURES.items()
    )
    head = INTRODUCTION.format(before=described(parts[0]), after=described(parts[1]), numbers=numbers, verdict=verdict)
    columns = [f"{name}, {when}" for name in MEASURES for when in ("before", "after")]
    table = [f"| defence | alignment | task | harmful rows | {' | '.join(columns)} | differs | n |"]
    table.append("| --- | --- | --- | ---: |" + " ---: |" * len(columns) + " --- | ---: |")
    return "\n".join([head, *table, *lines]) + "\n"


def _means(rows: Iterable[Row], purpose: str | None) -> dict[Key, dict[str, Mean]]:
    """The measures of each setting; a cell that failed has none."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    return {
        key: {
            name: mean_over_seeds([row[measure] for row in some], num_prompts(kind, purpose))
            for name, (measure, kind) in MEASURES.items()
        }
        for key, some in groups.items()
    }


def _differs(one: Mean, other: Mean) -> bool:
    return one.low > other.high or other.low > one.high


def _line(key: Key, old: Mapping[str, Mean], new: Mapping[str, Mean]) -> str:
    defence, stage, alignment, regime, rate, budget, task, ratio = key
    extras = [regime] if regime != "full" else []
    extras += [f"learning rate {rate:g}"] if rate is not None else []
    extras += [budget] if budget != "default" else []
    name = f"{defence} ({stage}{''.join(f', {extra}' for extra in extras)})"
    cells = [_shown(which[measure]) for measure in MEASURES for which in (old, new)]
    differing = ", ".join(name for name in MEASURES if _differs(old[name], new[name])) or "-"
    seeds = [next(iter(which.values())).num_seeds for which in (old, new)]
    count = f"{seeds[0]}" if seeds[0] == seeds[1] else f"{seeds[0]}, {seeds[1]}"
    return f"| {name} | {alignment} | {task} | {100 * ratio:g} % | {' | '.join(cells)} | {differing} | {count} |"


def _shown(mean: Mean) -> str:
    return f"{100 * mean.value:.1f} ({100 * mean.low:.1f} to {100 * mean.high:.1f})"
