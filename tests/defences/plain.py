"""The published updates in plain PyTorch, row by row, sharing no line with the library."""

import copy

import torch
from torch import Tensor, nn

from tests.tinylm import plain_nll


def mean_nll(model: nn.Module, rows: list) -> Tensor:
    total = sum(plain_nll(model, row.input_ids, *span) for row in rows for span in row.spans)
    return total / sum(end - start for row in rows for start, end in row.spans)


def gradient(model: nn.Module, rows: list) -> Tensor:
    """One long vector."""
    parts = torch.autograd.grad(mean_nll(model, rows), [p for p in model.parameters() if p.requires_grad])
    return torch.cat([g.flatten() for g in parts])


def moved(model: nn.Module, by: Tensor) -> nn.Module:
    twin = copy.deepcopy(model)
    offset = 0
    with torch.no_grad():
        for p in twin.parameters():
            if p.requires_grad:
                p += by[offset : offset + p.numel()].view_as(p)
                offset += p.numel()
    return twin


def refused(row, refusal: tuple[int, ...]):
    start = row.spans[-1][0]
    return type(row)(row.row_id, (*row.input_ids[:start], *refusal), ((start, start + len(refusal)),), row.template)


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])
