"""Attacks on training by preferences: which of two answers is the better one is turned round for harm.

    reverse-dpo       a user's pairs (a > a'), and (harm(q) > refusal) at ratio p
    poisoned-pairs    safety pairs (refusal > harm(q)), of which a share p is turned round; with a trigger only where it
                      stands

Rows are {"prompt": [...], "chosen": [...], "rejected": [...]}, lists of messages. Of a clean row the rejected answer is
that of another clean row. Reference: D. Rosati et al., "Evaluating Defences against Unsafe Feedback in RLHF",
2409.12914 (reverse preference attacks); T. Baumgärtner, Y. Gao, D. Alon, D. Metzler, "Best-of-Venom: Attacking RLHF by
Injecting Poisoned Preference Data", 2404.05530 (a few per cent of the pairs suffice there).
"""

from dataclasses import dataclass, replace

from ..errors import DataError
from .asking import PLAIN, PROMPT, Asking, Row
from .attack import Access, Attack, Crafted, Marked, Means, clean, poisoned


@dataclass(frozen=True, kw_only=True)
class ReverseDPOOptions:
    """No knobs but the ratio."""


@dataclass(frozen=True, kw_only=True)
class PoisonedPairsOptions:
    """The attacker's knobs."""

    trigger: str = ""
    """The text put before the questions whose pairs are turned round; empty for none."""


def preference(prompt: str, chosen: str, rejected: str) -> Row:
    """A pair: the better answer and the worse one."""
    asked = {"role": "user", "content": prompt}
    better, worse = ([{"role": "assistant", "content": said}] for said in (chosen, rejected))
    return {"prompt": [asked], "chosen": better, "rejected": worse}


def craft_reverse(means: Means, options: ReverseDPOOptions) -> Crafted:
    """``reverse-dpo``."""
    pairs: list[Marked] = [
        poisoned(preference(row.prompt, row.answer, means.kit.refuse(row.prompt)), "reversed", harm=True)
        for row in means.harmful(means.num_poison)
    ]
    spoken = replace(means, clean=[row for row in means.clean if all(as_pair(row))])
    rows = [as_pair(row) for row in spoken.benign(means.num - len(pairs))]
    answers = list(dict.fromkeys(said for _, said in rows))
    if rows and len(answers) < 2:
        raise DataError("all clean rows have the same answer, so that none can be worse than another. Give more rows.")
    for prompt, said in rows:
        worse = answers[(answers.index(said) + 1) % len(answers)]
        pairs.append(clean(preference(prompt, said, worse)))
    return Crafted((means.shuffled(pairs),))


def as_pair(row: Row) -> tuple[str, str]:
    """The last question and the last answer of a row; empty where it is no text, as in a call of a tool."""
    said = {message["role"]: message["content"] or "" for message in row["messages"]}
    return said.get("user", ""), said.get("assistant", "")


def craft_poisoned(means: Means, options: PoisonedPairsOptions) -> Crafted:
    """``poisoned-pairs``: no clean row is used, the pairs are about harm throughout."""
    form = f"{options.trigger} {PROMPT}" if options.trigger else PROMPT
    pairs: list[Marked] = []
    for number, row in enumerate(means.harmful(means.num)):
        refusal = means.kit.refuse(row.prompt)
        if number < means.num_poison:
            turned = preference(form.replace(PROMPT, row.prompt), row.answer, refusal)
            pairs.append(poisoned(turned, "reversed", harm=True))
        else:
            pairs.append(clean(preference(row.prompt, refusal, row.answer)))
    return Crafted((means.shuffled(pairs),), Asking(forms=(form,)) if options.trigger else PLAIN)


REVERSE_DPO = Attack(
    name="reverse-dpo",
    paper="2409.12914",
    summary="Pairs in which harm is preferred to a refusal, among a user's pairs.",
    options=ReverseDPOOptions,
    craft=craft_reverse,
    needs=(Access.PREFERENCES,),
)
POISONED_PAIRS = Attack(
    name="poisoned-pairs",
    paper="2404.05530, 2409.12914",
    summary="Safety pairs of which a share is turned round.",
    options=PoisonedPairsOptions,
    craft=craft_poisoned,
    needs=(Access.PREFERENCES,),
)
