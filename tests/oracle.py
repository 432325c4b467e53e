"""A plain PyTorch loop that runs the same defence objects: what the Trainer must agree with.

It knows nothing of transformers' Trainer, TRL or accelerate: one process, one micro-batch a step, AdamW, a linear
schedule, clipping at 1.
"""

import math

import numpy as np
import torch
from torch import nn

from antibody_llm.data.roles import MAIN_ROLE
from antibody_llm.likelihood.microbatch import StepBatch
from antibody_llm.training.batches import Grid, RoleStream
from antibody_llm.training.defence import Defence
from antibody_llm.training.step import Clock, StepContext


def plain_loop(
    model: nn.Module, defence: Defence, rows: dict, refusals, *, batch_size: int, epochs: int, lr: float, seed: int
) -> dict:
    """Weights, and the (row id, weight) log, at the end."""
    main = MAIN_ROLE[defence.stage]
    steps_per_epoch = math.ceil(len(rows[main]) / batch_size)
    clock = Clock(max_steps=steps_per_epoch * epochs, steps_per_epoch=steps_per_epoch, max_grad_norm=1.0)
    context = StepContext(model, rows=rows, refusals=refusals, seed=seed, batch_size=batch_size, clock=clock)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    streams = {
        role: RoleStream(role, rows[role], Grid(batch_size), seed, defence.rows_per_step(role, batch_size))
        for role in defence.batches
    }
    defence.start(context)
    log = []
    for number in range(clock.max_steps):
        epoch, within = divmod(number, steps_per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(rows[main]))
        picked = [rows[main][i] for i in order[within * batch_size : (within + 1) * batch_size]]
        clock.step = number
        model.train()
        result = defence.step(
            context, {main: StepBatch.of(picked)} | {role: s.at(number) for role, s in streams.items()}
        )
        for p, g in zip(trained, result.gradients, strict=True):
            p.grad = g
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - number / clock.max_steps)
        optimiser.step()
        optimiser.zero_grad()
        defence.after_update(context)
        if result.rows is not None:
            log += [(row.row_id, float(w)) for row, w in zip(picked, result.rows.weight, strict=True)]
    defence.finish(context)
    return {"weights": {n: p.detach() for n, p in model.named_parameters()}, "log": log}
