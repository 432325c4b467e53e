"""Sums over rows and tokens of what goes into the layers of a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .completion import completion_nll, evaluating
from .microbatch import MicroBatch
from .reader import ModelReader

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Inputs [B, T, columns], float32, and [B, T], bool, where a real token is, to what is summed."""


def squares(x: Tensor, real: Tensor) -> Tensor:
    """[columns]: the sum of each input's square over the real tokens."""
    return (x.square() * real[..., None]).sum(dim=(0, 1))


def products(x: Tensor, real: Tensor) -> Tensor:
    """[columns, columns]: the sum of x x' over the real tokens."""
    kept = x[real]
    return kept.T @ kept


def summed_inputs(
    reader: ModelReader,
    rows: str,
    layers: Sequence[nn.Module],
    of: Statistic,
    *,
    model: nn.Module | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """One pass over the rows of a role in evaluation mode, without gradient: the sum of a statistic at each layer.

    Args:
        reader: The rows, and the model unless another is given.
        rows: The name of a role.
        layers: Layers of the model.
        of: What is summed of a layer's inputs.
        model: Another model that reads the rows.
        progress: A function that is called before each forward with the number of rows done.
    """
    model = reader.model if model is None else model
    sums, done = _Sums(len(layers), of), 0

    def watch(micro: MicroBatch) -> Tensor:
        nonlocal done
        if progress is not None:
            progress(done)
        done += len(micro.rows)
        sums.lengths = [len(row.input_ids) for row in micro.rows]
        with reader.autocast():
            return completion_nll(model, micro, pad_id=reader.pad_id).row_total

    with evaluating(model), sums.watching(layers):
        reader.over_rows(rows, watch)
    return [reader.all_reduce(total) for total in sums.totals]


class _Sums:
    """The totals so far, filled by the hooks of ``watching``."""

    def __init__(self, num_layers: int, of: Statistic) -> None:
        self.of = of
        self.by_layer: list[Tensor | None] = [None] * num_layers
        self.lengths: Sequence[int] = ()
        """The number of real tokens of each row of the coming forward; padding follows them."""

    @property
    def totals(self) -> list[Tensor]:
        assert all(total is not None for total in self.by_layer), "a layer never ran"
        return [total for total in self.by_layer if total is not None]

    @contextmanager
    def watching(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Add every forward inside to the sums."""
        handles = []

        def hook(index: int) -> Any:
            def add(module: nn.Module, args: tuple[Any, ...]) -> None:
                x = args[0].float()
                lengths = torch.tensor(self.lengths, device=x.device)
                real = torch.arange(x.shape[1], device=x.device)[None] < lengths[:, None]
                found, total = self.of(x, real), self.by_layer[index]
                self.by_layer[index] = found if total is None else total + found

            return add

        try:
            for index, layer in enumerate(layers):
                handles.append(layer.register_forward_pre_hook(hook(index)))
            yield
        finally:
            for handle in handles:
                handle.remove()
