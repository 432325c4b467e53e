"""The aligned model, as it was when training began: a copy of the trainable weights that takes their place for a pass.

With an adapter that is one copy of the adapter, whatever it began from; there is no second model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..likelihood.completion import CompletionLogits, evaluating
from ..likelihood.microbatch import MicroBatch
from ..primitives.divergence import token_kl
from ..primitives.perturb import replaced_weights
from ..primitives.snapshots import from_state, snapshot, snapshot_state
from .step import RowTerms, StepContext


class Reference:
    """The weights of the start, w_0. Its passes have no gradient and no dropout."""

    def __init__(self, weights: list[Tensor] | None = None) -> None:
        self.weights = weights or []

    @classmethod
    def of(cls, context: StepContext) -> "Reference":
        """The model as it is now."""
        return cls(snapshot(context.parameters))

    @contextmanager
    def there(self, context: StepContext) -> Iterator[None]:
        """Inside, the model is the reference."""
        with replaced_weights(context.parameters, self.weights), torch.no_grad(), evaluating(context.model):
            yield

    def logits(self, context: StepContext, micro: MicroBatch) -> Tensor:
        """[M, V]: what the reference predicts at each of the M trained tokens of the rows."""
        with self.there(context):
            found = context.completion_logits(micro)
            return found.logits[found.trained]

    def divergence(self, context: StepContext, micro: MicroBatch) -> tuple[CompletionLogits, Tensor]:
        """Run the reference and then the model, whose graph must not see the weights change.

        Returns:
            What the model predicts, with its graph, and KL(reference || model) at every trained token: [B, W], nats,
            with that graph; 0 where none is trained.
        """
        before = self.logits(context, micro)
        found = context.completion_logits(micro)
        kl = token_kl(before, found.logits[found.trained])
        return found, torch.zeros(found.targets.shape, device=kl.device).masked_scatter(found.trained, kl)

    def mean_divergence(self, context: StepContext, micro: MicroBatch) -> RowTerms:
        """The terms of the mean of KL(reference || model) over all completion tokens of a step, nats per token."""
        found, kl = self.divergence(context, micro)
        return RowTerms(kl.sum(dim=1), found.trained.sum(dim=1).float())

    def state(self) -> dict[str, Tensor]:
        """The weights."""
        return snapshot_state(self.weights, "reference")

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Reference":
        """The reference that ``state`` stored."""
        return cls(from_state(state, "reference"))
