"""Gaussian noise that depends on the seed, the step and a name, and on nothing else.

Every rank draws the same, a resumed run draws what the undisturbed one drew, and no global generator is touched.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .shards import shard_like


def generator_of(seed: int, step: int, name: str) -> torch.Generator:
    """A CPU generator for one purpose at one step."""
    # Hashed, since only the low 32 bits of a seed reach the generator.
    return torch.Generator().manual_seed(zlib.crc32(f"{name} {seed} {step}".encode()))


def generator_at(*key: int) -> torch.Generator:
    """A CPU generator for one place, such as (seed, step, position, layer)."""
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + part) % 2**63
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def add_noise(weights: Sequence[Tensor], std: float, *, seed: int, step: int, name: str) -> None:
    """``w + std * xi``, xi standard normal, in place; ``std`` 0 leaves the weights bit for bit."""
    if std == 0:
        return
    generator = generator_of(seed, step, name)
    for w in weights:
        xi = torch.randn(w.shape, generator=generator, dtype=torch.float32)
        w.add_(shard_like(xi.to(w.device), w), alpha=std)
