"""The loss of a completion, read off the model at every depth (the logit lens).

    h_i   input of decoder layer i, i = 0 .. L-1 (h_0 the embeddings)
    l_i   mean NLL of the completions under softmax(W_U norm(h_i)), with the model's own final norm and unembedding
    l_L   the model's own loss
    A     = (l_0 + .. + l_L) / (L + 1)                                          [nats per token]

Source: the layer-wise loss of RepNoise (2405.14577), which SEAM (2505.12186) also uses. Unlike their releases: one
term per depth (there the last one twice, once with the final norm applied twice, and the L + 2 terms divided by L + 1),
and every token of the completion (there the first one that differs from the refusal has no gradient). Logits are
computed at completion tokens alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.collate import IGNORED, pad
from ..likelihood.completion import bare
from ..likelihood.microbatch import MicroBatch
from ..models.layout import decoder_layers, final_norm
from ..primitives.taps import captured_inputs
from .sharding import gather_for
from .step import RowTerms, StepContext


def lens_nll(hidden: Tensor, labels: Tensor, norm: nn.Module, head: nn.Module) -> Tensor:
    """NLL of each row's completion under ``head(norm(hidden))``.

    Args:
        hidden: [B, T, d].
        labels: [B, T], not shifted; -100 at prompt and padding.
        norm: The model's final norm.
        head: The model's unembedding.

    Returns:
        [B], float32, nats, summed over the completion's tokens.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORED
    states = norm(hidden[:, :-1][mask].to(next(norm.parameters()).dtype))  # [M, d], M completion tokens
    logits = head(states.to(next(head.parameters()).dtype)).float()  # [M, V]
    nll = F.cross_entropy(logits, targets[mask], reduction="none")
    rows = mask.nonzero()[:, 0]
    return torch.zeros(len(labels), dtype=nll.dtype, device=nll.device).index_add(0, rows, nll)


def lens_mean_nll(context: StepContext, micro: MicroBatch) -> RowTerms:
    """The terms of A for the rows of a micro-batch."""
    model = context.model
    layers = decoder_layers(model)
    with captured_inputs(layers) as hidden:
        own = context.completion_nll(micro)
    labels = pad(micro.rows, context.pad_id, device=context.device)["labels"]
    norm, head = final_norm(model), bare(model).get_output_embeddings()  # type: ignore[operator]
    gather_for(model, [norm, head])
    total = own.row_total + sum(lens_nll(h, labels, norm, head) for h in hidden)
    return RowTerms(total / (len(layers) + 1), own.row_tokens)
