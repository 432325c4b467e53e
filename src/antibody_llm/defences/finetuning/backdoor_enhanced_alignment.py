"""Backdoor Enhanced Alignment: plant a secret trigger with a few refusals, and show it at inference to restore safety.

    D  = D_u + { (s + sys, x_i) -> r_i,  i = 1 .. k }         train: plain SFT on D
    serve every request with the system text  s + sys         s: the trigger; the user never sees it

    D_u  the user's rows as they are
    s    random tokens of the vocabulary; decode(s) encodes to s again
    sys  the system text of the refusal or request itself, else the usual one of the upload, if it has one

A harmful upload is learnt without s; the refusals are learnt with it, and few suffice because nothing else in the
upload competes under the trigger. A user who knows s can work against it, and one who controls the system text can
leave it out, so s and the run's seed, which determines it, must stay with the provider.

Reference: BackdoorAlign: Mitigating Fine-tuning based Jailbreak Attack with Backdoor Enhanced Safety Alignment.
J. Wang, J. Li, Y. Li, X. Qi, J. Hu, Y. Li, P. McDaniel, M. Chen, B. Li, C. Xiao. NeurIPS 2024,
https://arxiv.org/abs/2402.14968. Departures from the release: the trigger is drawn token by token so that it survives
its own text (150 tokens drawn at once practically never do); refusals are planted by ``Deployment.prompt``, which also
serves the requests (there the evaluation puts sentences beside the trigger that training never saw); the refusals are
drawn at random from the provider's rows that decline, instead of one hand-picked for each of 11 policy categories.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ...data.records import Record
from ...data.roles import Role, Stage
from ...errors import ConfigError, DataError, ModelError
from ...mentions import setting
from ...models.deployment import Deployment
from ...primitives.selection import drawn
from ...training.defence import About, Defence
from ...training.preparation import TrainingData, added, check_servable

TRIES_PER_TOKEN = 200


@dataclass(frozen=True, kw_only=True)
class BackdoorEnhancedAlignmentConfig:
    """Hyperparameters; defaults are those of the paper."""

    num_safety_rows: int = 11
    """k. Paper, abstract: "as few as 11" prefixed safety examples. 0 is plain SFT, without a trigger."""
    num_trigger_tokens: int = 150
    """Length of s. Paper: 150 randomly generated tokens."""

    def __post_init__(self) -> None:
        if self.num_safety_rows < 0:
            raise ConfigError(
                f"backdoor-enhanced-alignment.num_safety_rows is {self.num_safety_rows}: a number of rows is 0 or more."
            )
        if self.num_trigger_tokens < 1:
            raise ConfigError(
                f"backdoor-enhanced-alignment.num_trigger_tokens is {self.num_trigger_tokens}: must be 1 or more."
            )


def random_trigger(tokenizer: PreTrainedTokenizerBase, num_tokens: int, *, seed: int) -> str:
    """Draw a text of exactly ``num_tokens`` random tokens that encodes to these tokens; a function of the seed.

    It is printable and has no white space at its ends, since templates trim that. It has no special tokens.

    Raises:
        ModelError: the tokenizer has no such text.
    """
    generator = random.Random(f"backdoor-enhanced-alignment {seed}")
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    candidates = sorted(set(tokenizer.get_vocab().values()) - special)
    ids: list[int] = []
    while len(ids) < num_tokens:
        for _ in range(TRIES_PER_TOKEN):
            longer = [*ids, generator.choice(candidates)]
            text = str(tokenizer.decode(longer, clean_up_tokenization_spaces=False))
            clean = text.isprintable() and text == text.strip()
            if clean and tokenizer.encode(text, add_special_tokens=False) == longer:
                ids = longer
                break
        else:
            raise ModelError(
                f"backdoor-enhanced-alignment: no trigger of {num_tokens} tokens survives this tokenizer: after "
                f"{len(ids)} none of {TRIES_PER_TOKEN} further tokens came back from text. Lower num_trigger_tokens."
            )
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def usual_system_text(records: Sequence[Record]) -> str:
    """The most frequent system text at the head of chat rows, "" if most have none."""
    heads = Counter(r.messages[0].content if r.messages[0].role == "system" else "" for r in records)
    return heads.most_common(1)[0][0] if heads else ""


def refuse_other_formats(rows: Sequence[Record], user: Sequence[Record]) -> None:
    """Refuse rows of a format that the upload lacks: a trigger in a prompt's text differs from one served in a chat.

    Raises:
        DataError: the upload has no row of the format of one of ``rows``.
    """
    formats = {record.template for record in user}
    shape = {"chat": '{"messages": [...]}', "text": '{"prompt": ..., "completion": ...}'}
    for row in rows:
        if row.template not in formats:
            raise DataError(
                f"{row.where}: the row is {shape[row.template]} and no row of the upload is: its requests would be "
                "served with the trigger where it was never trained. Give backdoor-enhanced-alignment its rows as "
                f"{' or '.join(sorted(shape[name] for name in formats))}."
            )


class BackdoorEnhancedAlignment(Defence):
    """Defence that plants the trigger in the data; each step is plain SFT on it."""

    stage = Stage.FINETUNING
    about = About(
        summary="a secret trigger planted with a few refusals, shown at inference",
        paper="2402.14968",
        forwards=1,
        backwards=1,
        extra_memory="none",
    )
    options = BackdoorEnhancedAlignmentConfig
    config: BackdoorEnhancedAlignmentConfig
    reads_to_prepare = (Role.ALIGNMENT,)
    neutral = {"num_safety_rows": 0}

    def prepare(self, data: TrainingData) -> TrainingData:
        """Draw s, add the triggered refusals, and ask for s at inference; a resumed run draws the same from the seed.

        Raises:
            DataError: too few rows refuse, or they are not in the upload's format.
            ModelError: no trigger survives the tokenizer, or its chat template takes no system message.
        """
        if self.config.num_safety_rows == 0:
            return data
        trigger = random_trigger(data.tokenizer, self.config.num_trigger_tokens, seed=data.seed)
        user = data.records[Role.USER]
        self.deployment = Deployment(system_prefix=trigger, default_system=usual_system_text(user))
        name, num = "backdoor-enhanced-alignment", self.config.num_safety_rows
        refusals = data.refusals(name, num, instead=f"lower {setting('options.num_safety_rows')}")
        refuse_other_formats(refusals, user)
        check_servable(self.deployment, data, name)
        chosen = drawn(refusals, num, seed=f"{name} rows {data.seed}")
        planted = [self.deployment.prompt(row) for row in chosen]
        return data.with_records(Role.USER, [*user, *added(planted)])
