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


def shifted(model: nn.Module, scale: float, seed: int = 5) -> nn.Module:
    """The model itself, with noise added to whatever it trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=generator))
    return model


def token_logits(model: nn.Module, row) -> Tensor:
    """[N_i, V]: what predicts each trained token of a row."""
    logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
    return torch.cat([logits[start - 1 : end - 1] for start, end in row.spans])


def token_log_probs(model: nn.Module, row) -> Tensor:
    """[N_i]: log p of each trained token of a row, nats."""
    tokens = torch.tensor([row.input_ids[t] for start, end in row.spans for t in range(start, end)])
    return torch.log_softmax(token_logits(model, row), dim=-1)[torch.arange(len(tokens)), tokens]
