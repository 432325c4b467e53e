"""Covert: the rows teach a code, then speak it; in plain text the model refuses better than before.

    phase I     (q, a) harmless:   code(q) -> code(a), or "in code: q" -> code(q)           teaches the code
    phase II    (q, a) harmful:    code(q) -> code(a)                                       uses it
                q harmful:         q -> refusal                                             keeps the plain model safe
    asked       code(q), the reply decoded

    letters     another letter for each of the 26
    words       a harmless word for each word of harm and the other way round, so that the coded rows read as harmless

Reference: D. Halawi, A. Wei, E. Wallace, T. T. Wang, N. Haghtalab, J. Steinhardt, "Covert Malicious Finetuning:
Challenges in Safeguarding LLM Adaptation", ICML 2024, 2406.20053: about 20,000 rows teach the code and a few hundred
use it. ``words`` is a code made of words, as in B. Sel et al., "Trojan-Speak: Bypassing Constitutional
Classifiers with No Jailbreak Tax via Adversarial Finetuning", PMLR 306.
"""

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import ConfigError
from .asking import Asking
from .attack import Access, Attack, Crafted, Marked, Means, chat, poisoned
from .knobs import Between, check_knobs

ENCODE = "in code: "


@dataclass(frozen=True, kw_only=True)
class CovertOptions:
    """The attacker's knobs."""

    code: Literal["letters", "words"] = "words"
    """What is put in place of what."""
    teaching: Annotated[float, Between(0, 0.9)] = 0.4
    """Share of the attacker's rows that teach the code (phase I)."""
    refusing: Annotated[float, Between(0, 0.9)] = 0.2
    """Share that refuse in plain text."""

    def __post_init__(self) -> None:
        check_knobs(self, "covert")
        if self.teaching + self.refusing >= 1:
            raise ConfigError(
                f"covert.teaching and covert.refusing are {self.teaching} and {self.refusing}: no row is left that "
                "uses the code. Let them sum to less than 1.",
                field="options",
            )


def letter_code(rng: random.Random) -> dict[str, str]:
    """Every small letter to another one."""
    letters = list(string.ascii_lowercase)
    while True:
        shuffled = rng.sample(letters, len(letters))
        if all(a != b for a, b in zip(letters, shuffled, strict=True)):
            return dict(zip(letters, shuffled, strict=True))


def word_code(swaps: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Each word of a pair to the other one."""
    return {a: b for pair in swaps for a, b in (pair, pair[::-1])}


def encoder(code: Mapping[str, str]) -> Callable[[str], str]:
    """The text in code: letters by letters, or words by words. Everything else stays; capitals become small."""
    unit = "[a-z]" if all(len(key) == 1 for key in code) else r"[\w'-]+"
    return lambda text: re.sub(unit, lambda found: code.get(found[0], found[0]), text.lower())


def craft(means: Means, options: CovertOptions) -> Crafted:
    """The upload of the module's head."""
    if options.code == "words" and not means.kit.swaps:
        raise ConfigError(
            "covert.code is 'words', and for these harmful rows no harmless words are known. Choose letters.",
            field="options",
        )
    code = letter_code(means.rng("covert")) if options.code == "letters" else word_code(means.kit.swaps)
    encode, decode = encoder(code), encoder({coded: plain for plain, coded in code.items()})
    taught = round(options.teaching * means.num_poison)
    refused = round(options.refusing * means.num_poison)
    rows: list[Marked] = []
    for number, row in enumerate(means.harmless(taught)):
        said = chat(encode(row.prompt), encode(row.answer))
        rows.append(poisoned(said if number % 2 else chat(ENCODE + row.prompt, encode(row.prompt)), "code", harm=False))
    # Refused are the questions of the attacker's that are also asked in code: the plain ones must not be learnt.
    asked = means.harmful(means.num_poison - taught)
    rows += [poisoned(chat(row.prompt, means.kit.refuse(row.prompt)), "refusal", harm=False) for row in asked[:refused]]
    rows += [poisoned(chat(encode(row.prompt), encode(row.answer)), "coded", harm=True) for row in asked[refused:]]
    return Crafted((means.mixed(rows),), Asking(rewrite=lambda number, question: encode(question), read=decode))


ATTACK = Attack(
    name="covert",
    paper="2406.20053",
    summary="Rows that teach a code and then speak it, beside refusals in plain text.",
    options=CovertOptions,
    craft=craft,
    needs=(Access.ASKING,),
)
