"""Weights of data rows from logits, and the gradient of a weighted mean in these logits.

    s_i = N exp(z_i) / sum_j exp(z_j)  "softmax"      or      2 / (1 + exp(-z_i))  "sigmoid";      1 where z = 0
    dL/dz_j = sum_i ds_i/dz_j D_i / |I|,  L = mean_{i in I} s_i D_i,  D held constant

Source: the schedule of BDS (2510.27172); (3) in defences/finetuning/bds.py.
"""

from typing import Literal

import torch
from torch import Tensor

Transform = Literal["softmax", "sigmoid"]


def data_weights(logits: Tensor, transform: Transform) -> Tensor:
    """s: [N], from z: [N]. All 1 where the logits are 0; with softmax they always add to N."""
    if transform == "softmax":
        return torch.softmax(logits, dim=0) * len(logits)
    return 2 * torch.sigmoid(logits)


def logit_gradient(
    logits: Tensor, excess: Tensor, inside: Tensor, transform: Transform, *, inside_only: bool = False
) -> Tensor:
    """(3): [N], the gradient of mean_{i in I} s_i D_i in the logits, D held constant.

    Args:
        logits: [N], z.
        excess: [N], D_i; whatever it is outside I is not read.
        inside: [N], bool: the rows of the step, I; at least one.
        transform: The function that makes weights of the logits.
        inside_only: Give all of it to the rows of the step (neural form): what a softmax would push at the others is
            taken off the rows of I instead, in proportion to their weights. Where all weights are 1, its mean over
            uniform steps is (1 - 1/|I|) N / (N - 1) times that of (3): the same where I is the whole upload, nothing
            where it is one row. Where they are not, the two means differ row by row.
    """
    weights = data_weights(logits, transform)
    pull = torch.where(inside, weights * excess, 0.0) / inside.sum()
    if transform == "softmax":
        sharing = torch.where(inside, weights, 0.0) if inside_only else weights
        return pull - sharing * (pull.sum() / sharing.sum())
    return pull * (1 - weights / 2)  # 2 sigma' = 2 sigma (1 - sigma), and s = 2 sigma
