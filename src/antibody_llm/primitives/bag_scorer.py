"""A small scorer of rows: one number for a prompt and its completion, from the tokens alone.

    z = w2 . tanh(W1 [mean E_prompt ; mean E_completion] + b1)

It has embeddings of its own, so that what it says of a row does not move with the model that is being trained, and a
row that was never trained on can be scored. The last layer begins at 0: at first every row scores exactly 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 32
"""Width of the embeddings and of the hidden layer."""

_INITIAL = 0.1
"""Standard deviation of the first embeddings: small, so that what is learnt of a token soon outweighs chance."""


def new_scorer(num_tokens: int, generator: torch.Generator) -> list[Tensor]:
    """phi = [E [V, d], W1 [d, 2d], b1 [d], w2 [d]], float32, on the CPU."""
    embeddings = torch.randn(num_tokens, WIDTH, generator=generator) * _INITIAL
    hidden = torch.randn(WIDTH, 2 * WIDTH, generator=generator) / (2 * WIDTH) ** 0.5
    return [embeddings, hidden, torch.zeros(WIDTH), torch.zeros(WIDTH)]


def bag_scores(phi: Sequence[Tensor], prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """[rows], with graph where ``phi`` asks for one. No prompt and no completion may be empty."""
    embeddings, hidden, bias, last = phi
    pooled = torch.cat([_mean(embeddings, prompts), _mean(embeddings, completions)], dim=1)  # [rows, 2d]
    return torch.tanh(F.linear(pooled, hidden, bias)) @ last


def _mean(embeddings: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """[rows, d]: the mean embedding of each bag of tokens."""
    assert all(bags), "a bag without tokens has no mean"
    flat = torch.tensor([token for bag in bags for token in bag], device=embeddings.device)
    sizes = torch.tensor([0, *(len(bag) for bag in bags[:-1])], device=embeddings.device)
    return F.embedding_bag(flat, embeddings, sizes.cumsum(0), mode="mean")
