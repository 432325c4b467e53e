"""A small sample that covers much: greedy k-centre, equal quotas, and vectors of texts where no model embeds them."""

import zlib
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def hashed_words(texts: Sequence[str], num_dims: int = 512) -> Tensor:
    """[texts, num_dims], float32, L2-normalised: counts of words and of neighbouring words, hashed with a sign.

    Texts that share words are near each other. No model, no state, the same on every machine.
    """
    vectors = torch.zeros(len(texts), num_dims)
    for i, text in enumerate(texts):
        words = text.casefold().split()
        for item in (*words, *(f"{a} {b}" for a, b in pairwise(words))):
            code = zlib.crc32(item.encode())
            vectors[i, code // 2 % num_dims] += 1.0 if code % 2 else -1.0
    return F.normalize(vectors, dim=1)


def k_centres(vectors: Tensor, num: int, *, first: int) -> list[int]:
    """Greedy k-centre: each next centre is the row farthest from all chosen so far; ties go to the lowest index.

    The sample covers within twice the best possible radius (Gonzalez 1985). Never chooses a row twice.

    Args:
        vectors: [n, d].
        num: How many, at most n.
        first: Index of the first centre.
    """
    assert 0 <= num <= len(vectors), f"{num} centres of {len(vectors)} rows"
    centres = [first][:num]
    distance = torch.full((len(vectors),), torch.inf)
    while len(centres) < num:
        distance = torch.minimum(distance, (vectors - vectors[centres[-1]]).norm(dim=1))
        distance[centres[-1]] = -1.0  # a duplicate of a centre is at 0, the centre itself is out
        centres.append(int(distance.argmax()))
    return centres


def nearest_centre(vectors: Tensor, centres: Sequence[int]) -> list[int]:
    """The nearest of the centres for each row, counted from 0; ties go to the earlier one."""
    distances = torch.stack([(vectors - vectors[centre]).norm(dim=1) for centre in centres])
    return [int(i) for i in distances.argmin(dim=0)]


def equal_quotas(num: int, sizes: Sequence[int]) -> list[int]:
    """``num`` shared out as evenly as ``sizes`` allow: what a short group cannot give, the others give.

    Of groups with equal quotas the larger one gives one more first (earlier, if they are as large).
    """
    assert num <= sum(sizes), f"{num} of {sum(sizes)}"
    quotas = [0] * len(sizes)
    for _ in range(num):
        open_ = [i for i, size in enumerate(sizes) if quotas[i] < size]
        quotas[min(open_, key=lambda i: (quotas[i], -sizes[i], i))] += 1
    return quotas
