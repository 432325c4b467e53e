"""A model and its rows: everything that can be computed from them without a training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.records import TokenizedRow
from ..errors import ConfigError
from ..mentions import setting
from ..models.adapters import adapter_disabled
from ..primitives.shards import is_sharded
from .completion import CompletionLogits, TurnNLL, check_completion_nll, completion_logits, completion_nll
from .microbatch import MicroBatch, StepBatch
from .ranks import all_reduce, num_ranks
from .refusals import Refusals, Scoring, check_scoring, completion_and_refusal_nll, usable_scoring


class ModelReader:
    """A model, the one before its alignment, and the rows to be read.

    Args:
        model: The bare model or PEFT model (never DDP's wrapper), on its device.
        rows: The tokenised rows by role.
        pad_id: The tokenizer's padding id.
        refusals: Generic refusals, if rows are scored against them.
        rank: This process's number among those that share the rows.
        autocast: A context entered around every forward, each time again, since a cached cast hides a perturbation.
        batch_size: Rows per forward pass over a whole role.
        base: The model before its alignment, if that is not this model with its adapter switched off.
        aligned: The model that fine-tuning started from, with the same default.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rows: Mapping[str, Sequence[TokenizedRow]] | None = None,
        pad_id: int = 0,
        refusals: Refusals | None = None,
        rank: int = 0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        batch_size: int = 16,
        base: nn.Module | None = None,
        aligned: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.rows = dict(rows or {})
        self.pad_id = pad_id
        self.rank = rank
        self.autocast = autocast
        self._refusals = refusals
        self.batch_size = batch_size
        self._base = base
        self._aligned = aligned

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return next(self.model.parameters()).device

    @property
    def refusals(self) -> Refusals:
        """The refusals that rows are scored against.

        Raises:
            ConfigError: there are none.
        """
        if self._refusals is None:
            raise ConfigError(f"rows are scored against refusals here, and there are none. Give {setting('refusals')}.")
        return self._refusals

    # -- likelihoods ---------------------------------------------------------------------------------------------

    def completion_nll(self, micro: MicroBatch) -> TurnNLL:
        """NLL(y|x) of every trained turn, with its graph."""
        with self.autocast():
            return completion_nll(self.model, micro, pad_id=self.pad_id)

    def completion_logits(self, micro: MicroBatch) -> CompletionLogits:
        """What the model predicts at every trained token, with its graph."""
        with self.autocast():
            return completion_logits(self.model, micro, pad_id=self.pad_id)

    def completion_and_refusal_nll(self, micro: MicroBatch, scoring: Scoring) -> tuple[TurnNLL, TurnNLL]:
        """NLL(y|x) with its graph and NLL(r|x) without, from one forward if ``scoring`` allows it."""
        with self.autocast():
            return completion_and_refusal_nll(
                self.model,
                micro,
                self.refusals,
                pad_id=self.pad_id,
                scoring=usable_scoring(self.model, scoring),
            )

    def sequence_nll(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """(total [B], num_tokens [B]) of this rank's rows, no gradient; nats summed over a row's completion tokens."""
        with torch.no_grad():
            parts = [self.completion_nll(micro) for micro in batch.micro_batches]
        return torch.cat([p.row_total for p in parts]), torch.cat([p.row_tokens for p in parts])

    def over_rows(
        self,
        role: str | Sequence[TokenizedRow],
        values: Callable[[MicroBatch], Tensor],
        width: int | None = None,
    ) -> Tensor:
        """Compute one number for every row of a role, without gradient: [rows], float32, the same on every rank.

        The rows are sorted by length, so that there is little padding, and shared among the ranks. The model's mode
        (training or not) does not change.

        Args:
            role: The name of a role, or the rows themselves.
            values: A function that gives the numbers of a forward pass: [B], or [B, width].
            width: The numbers per row; the result is then [rows, width].
        """
        rows = self.rows[role] if isinstance(role, str) else role
        result = torch.zeros(len(rows) if width is None else (len(rows), width), device=self.device)
        with torch.no_grad():
            for some, counted in self.passes(rows):
                numbers = values(MicroBatch.of([rows[i] for i in some])).float()
                if counted:
                    result[some] = numbers
        return all_reduce(result)

    def passes(self, rows: Sequence[TokenizedRow]) -> Iterator[tuple[list[int], bool]]:
        """The rows of each forward pass of this rank over all rows, by index, and whether its numbers count.

        Shorter rows come first, so that there is little padding. Of a sharded model every rank makes as many passes as
        the others, since they gather the weights together: one that has no rows left repeats one, which does not count.
        """
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i))
        mine = order[self.rank :: num_ranks()]
        passes = [(mine[i : i + self.batch_size], True) for i in range(0, len(mine), self.batch_size)]
        if any(is_sharded(p) for p in self.model.parameters()):
            most = -(-len(order[:: num_ranks()]) // self.batch_size)
            passes += [(order[:1], False)] * (most - len(passes))
        yield from passes

    # -- another model, for a moment -----------------------------------------------------------------------------

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off inside; no ``requires_grad`` flag changes."""
        with adapter_disabled(self.model):
            yield

    @contextmanager
    def before_alignment(self) -> Iterator[nn.Module]:
        """Yield the model as it was before its alignment: a separate model, or this one with its adapter off.

        Raises:
            ModelError: there is neither.
        """
        with self._earlier(self._base) as model:
            yield model

    @contextmanager
    def before_finetuning(self) -> Iterator[nn.Module]:
        """Yield the model that fine-tuning started from: a separate model, or this one with its adapter off.

        Raises:
            ModelError: there is neither.
        """
        with self._earlier(self._aligned) as model:
            yield model

    @contextmanager
    def _earlier(self, other: nn.Module | None) -> Iterator[nn.Module]:
        if other is not None:
            yield other
            return
        with self.without_adapter():
            yield self.model

    # -- the run -------------------------------------------------------------------------------------------------

    def all_reduce(self, tensor: Tensor, op: Literal["sum", "max"] = "sum") -> Tensor:
        """Sum or maximum over all ranks, in place."""
        return all_reduce(tensor, op)

    def check(self, scoring: Scoring | None = None) -> None:
        """Compare what relies on a library's internals with the plain path, on the first rows of the first role.

        Raises:
            TrainingError: they differ by more than rounding.
        """
        micro = MicroBatch.of(next(iter(self.rows.values()))[:4])
        with self.autocast():
            check_completion_nll(self.model, micro, pad_id=self.pad_id)
            if scoring is not None:
                form = usable_scoring(self.model, scoring)
                check_scoring(self.model, micro, self.refusals, pad_id=self.pad_id, scoring=form)
