"""Behaviour-aware sampling: mix a few refusals into the upload, spread over kinds of harm.

    pool    the provider's rows whose completion refuses                     harmful prompt x refusal
    k       round(ratio * N) of them for N user rows, and at least one
    k_c     k shared evenly among the categories c; small ones give their rest to the others
    in c    k_c rows by greedy k-centre on normalised embeddings             to cover c
    train   plain SFT on the user's rows and the k

Reference: Preventing Catastrophic Forgetting: Behavior-Aware Sampling for Safer Language Model Fine-Tuning. A. Pham, M.
Thalanki, M. Sun, A. Chaloo, A. Gupta, T. Xia, A. Mate, E. Nosakhare, S. Srinivasan. EMNLP 2025 (industry track),
https://arxiv.org/abs/2510.21885. Its sampler and code were not available to us; the above is our reading of its two
principles, behaviour and diversity of harm. Also ours: a small upload gets one row, not none; behaviour is recognised
by a completion's first words (a provider's row that is refused counts as a harmful prompt); rows have no category, so
the pool's k-centre clusters are used as categories; embeddings are hashed words. The budget is printed as 0.5 % in the
listing's abstract and as 0.05 % elsewhere.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ...data.records import Record
from ...data.roles import Role, Stage
from ...errors import ConfigError
from ...events import inform
from ...mentions import setting
from ...primitives.spread import equal_quotas, hashed_words, k_centres, nearest_centre
from ...training.defence import About, Defence
from ...training.preparation import TrainingData, added


@dataclass(frozen=True, kw_only=True)
class BehaviourAwareSamplingConfig:
    """Hyperparameters."""

    ratio: float = 0.005
    """Safety rows per user row. Paper, abstract of the listing: 0.5 %; other versions print 0.05 %. 0 is plain SFT."""
    num_categories: int = 10
    """Number of clusters of the pool, which are used as categories of harm. Ours."""

    def __post_init__(self) -> None:
        if not (self.ratio >= 0 and isfinite(self.ratio)):
            raise ConfigError(f"behaviour-aware-sampling.ratio is {self.ratio}: must be a finite number, 0 or more.")
        if self.num_categories < 1:
            raise ConfigError(f"behaviour-aware-sampling.num_categories is {self.num_categories}: must be 1 or more.")


def behaviour_aware_sample(vectors: Tensor, categories: Sequence[int], num: int, *, seed: str) -> list[int]:
    """Choose rows of a pool: equal quotas over categories, greedy k-centre within each.

    Args:
        vectors: [pool, d], L2-normalised.
        categories: [pool].
        num: k, at most the size of the pool.
        seed: Chooses the first centre in each category.

    Returns:
        ``num`` different indices, ascending.
    """
    generator = random.Random(seed)
    groups = [[i for i, of in enumerate(categories) if of == c] for c in sorted(set(categories))]
    chosen: list[int] = []
    for group, quota in zip(groups, equal_quotas(num, [len(group) for group in groups]), strict=True):
        first = generator.randrange(len(group))
        chosen += [group[i] for i in k_centres(vectors[torch.tensor(group)], quota, first=first)]
    return sorted(chosen)


class BehaviourAwareSampling(Defence):
    """Defence that samples before training; each step is plain SFT."""

    stage = Stage.FINETUNING
    about = About(
        summary="a few refusals, spread over kinds of harm, mixed into the upload",
        paper="2510.21885",
        forwards=1,
        backwards=1,
        extra_memory="none",
    )
    options = BehaviourAwareSamplingConfig
    config: BehaviourAwareSamplingConfig
    reads_to_prepare = (Role.ALIGNMENT,)
    neutral = {"ratio": 0.0}

    def prepare(self, data: TrainingData) -> TrainingData:
        """Add the sampled rows to the upload.

        Raises:
            DataError: the provider has fewer refusals than the budget.
        """
        user = data.records[Role.USER]
        if self.config.ratio == 0:
            return data
        num = round(self.config.ratio * len(user))
        if num == 0:  # or a small upload would have no defence at all
            inform(
                f"behaviour-aware-sampling: a share of {self.config.ratio:g} of {len(user)} rows is none: one is taken."
            )
            num = 1
        pool = data.refusals("behaviour-aware-sampling", num, instead=f"lower {setting('options.ratio')}")
        vectors = embedded(pool)
        seed = f"behaviour-aware-sampling {data.seed}"
        first = random.Random(f"{seed} categories").randrange(len(pool))
        centres = k_centres(vectors, min(self.config.num_categories, len(pool)), first=first)
        chosen = behaviour_aware_sample(vectors, nearest_centre(vectors, centres), num, seed=seed)
        return data.with_records(Role.USER, [*user, *added([pool[i] for i in chosen])])


def embedded(records: Sequence[Record]) -> Tensor:
    """[rows, d], L2-normalised: the prompts as hashed words."""
    return hashed_words([" ".join(m.content for m in record.messages if m.role == "user") for record in records])
