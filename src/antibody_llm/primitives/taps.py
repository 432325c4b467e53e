"""Hidden states, read or shifted while a model computes. Hooks live inside a context manager and nowhere else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def captured(modules: Sequence[nn.Module], *, differentiable: bool = False) -> Iterator[list[Tensor]]:
    """Within, every forward fills the list with what each module puts out, with its graph.

    Leave the context before a backward pass: under gradient checkpointing that would run the modules again.

    Args:
        modules: Those to listen to, in the order in which they run. A module that gives a tuple counts by its first
            element.
        differentiable: Make every captured output one by which can be differentiated, also where nothing below it is
            trainable. Its value stays the same.

    Yields:
        The outputs of the latest forward, in the order of ``modules``; empty before the first.
    """
    outputs: list[Tensor] = []

    def hook(index: int) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            state = _first(output)
            if differentiable and not state.requires_grad:
                state = state.detach().requires_grad_()
            if index == 0:
                outputs.clear()
            outputs.append(state)
            return _with_first(output, state)

        return take

    with _hooked(modules, hook):
        yield outputs


@contextmanager
def captured_at(modules: Sequence[nn.Module], positions: Tensor) -> Iterator[list[Tensor]]:
    """Within, the first forward fills the list with one position of each row: [B, D] for each module, without graph.

    Args:
        modules: Those to listen to, as in ``captured``.
        positions: [B], which position of each row.
    """
    outputs: list[Tensor] = []

    def hook(index: int) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if index == len(outputs):  # a later forward finds the list full
                state = _first(output).detach()
                outputs.append(state[torch.arange(len(state), device=state.device), positions.to(state.device)])

        return take

    with _hooked(modules, hook):
        yield outputs


@contextmanager
def captured_inputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """``captured`` for what goes into each module: the first argument, or the one called ``hidden_states``.

    What goes into the decoder layers are the hidden states h_0 .. h_{L-1}, before any final norm.
    """
    inputs: list[Tensor] = []

    def hook(index: int) -> Any:
        def take(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if index == 0:
                inputs.clear()
            inputs.append(args[0] if args else kwargs["hidden_states"])

        return take

    with _hooked(modules, hook, inputs=True):
        yield inputs


@contextmanager
def added(modules: Sequence[nn.Module]) -> Iterator[list[Tensor | None]]:
    """Within, ``delta[i]`` of the yielded list is added to what module i puts out; None adds nothing.

    Change the list's elements between forwards as needed. Stay inside for the backward pass too, since gradient
    checkpointing computes the outputs again there.
    """
    deltas: list[Tensor | None] = [None] * len(modules)

    def hook(index: int) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            delta = deltas[index]
            if delta is None:
                return output
            state = _first(output)
            return _with_first(output, state + delta.to(state.dtype))

        return add

    with _hooked(modules, hook):
        yield deltas


@contextmanager
def _hooked(modules: Sequence[nn.Module], make: Callable[[int], Any], *, inputs: bool = False) -> Iterator[None]:
    """Within, module i has the hook ``make(i)``: on what it puts out, or with ``inputs`` on what goes in."""
    handles = []
    try:
        for index, module in enumerate(modules):
            if inputs:
                handles.append(module.register_forward_pre_hook(make(index), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(make(index)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _with_first(output: Any, state: Tensor) -> Any:
    """``output`` with another hidden state in it: a new tuple, never an assignment into the old one."""
    return (state, *output[1:]) if isinstance(output, tuple) else state
