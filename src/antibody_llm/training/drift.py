"""Gradients with respect to hidden states, and the loss with the hidden states of some modules shifted.

    e_l   output of module l, [B, T, d]              gamma_l = d f / d e_l,  f the token mean over the whole step
    N     = sqrt(sum_l |gamma_l|^2), one norm over modules, rows, positions and features of the step
    shift = rho * gamma_l / (N + 1e-7): the shift of norm rho that raises f most, to first order

Source: Eq. 4-6 of Vaccine (2402.01109). The gradients are kept row by row from one sweep to the next, so that the norm
is that of the optimiser step, however it is cut.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..likelihood.microbatch import MicroBatch, StepBatch
from ..primitives.taps import added, captured
from .step import RowTerms, StepContext, Sweep

HiddenGradients = list[list[Tensor]]
"""[micro-batches of this rank][modules], each [B, T, d]."""


def hidden_gradients(context: StepContext, batch: StepBatch, modules: Sequence[nn.Module]) -> HiddenGradients:
    """gamma of every module, for the rows of this rank; no gradient with respect to a weight is computed.

    Args:
        context: The model, as it is now.
        batch: This rank's share of the step.
        modules: The modules whose outputs are shifted, in the order in which they run.
    """
    gammas: HiddenGradients = []
    num_tokens = torch.zeros((), dtype=torch.float64, device=context.device)
    for micro in batch.micro_batches:
        with captured(modules, differentiable=True) as outputs:
            nll = context.completion_nll(micro)
        counted = torch.tensor(micro.counted, device=context.device, dtype=nll.row_total.dtype)
        gammas.append(list(torch.autograd.grad((counted * nll.row_total).sum(), outputs)))
        num_tokens += (counted * nll.row_tokens).sum()
    total = float(context.all_reduce(num_tokens))
    return [[gamma / total for gamma in of_micro] for of_micro in gammas]


def norms(context: StepContext, gammas: HiddenGradients) -> Tensor:
    """|gamma_l| of each module over the whole step and all ranks: [modules], float64."""
    squares = torch.stack([torch.stack([g.float().square().sum().double() for g in micro]) for micro in gammas])
    return context.all_reduce(squares.sum(dim=0)).sqrt()


def worst_shift(gammas: HiddenGradients, norm: Tensor | float, rho: float) -> HiddenGradients:
    """rho * gamma / (N + 1e-7): shifts of total length rho, zero where gamma is zero."""
    factor = rho / (float(norm) + 1e-7)
    return [[gamma * factor for gamma in micro] for micro in gammas]


def shifted_gradient(
    context: StepContext, batch: StepBatch, modules: Sequence[nn.Module], shifts: HiddenGradients
) -> Sweep:
    """Gradient of the token mean with each module's output shifted; the shifts count as constants."""
    with added(modules) as deltas:
        of_micro = iter(shifts)

        def loss(micro: MicroBatch) -> RowTerms:
            deltas[:] = next(of_micro)
            return context.token_mean_nll(micro)

        return context.gradient(loss, batch)
