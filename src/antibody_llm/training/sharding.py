"""A model that FSDP2 has sharded: how its gradient is taken, and the check of what that relies on.

Between two passes a rank holds a part of every weight, a DTensor. A pass gathers the weights unit by unit into plain
tensors, computes with those, and frees them.

- ``torch.autograd.grad`` with respect to the parts finds nothing, since the graph is made of the gathered tensors; the
  zeros that it fills in look like a gradient. Only ``.backward()`` sums over ranks and leaves the part in ``.grad``.
- A unit that stays gathered after a pass does not see its parts change, and a perturbation would be lost. So every unit
  gives its weights back after every pass, the first and the last one too, which costs one more gathering of those.
- Every pass is made by all ranks together, or they wait for each other.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..errors import ConfigError, TrainingError
from ..likelihood.ranks import all_reduce
from ..primitives.gradients import Gradients, difference, norm
from ..primitives.perturb import perturbed_weights
from ..primitives.shards import is_sharded, whole

Place = tuple[nn.Module, str]
"""A module, and the name of a weight of its own."""


def share_out(model: nn.Module) -> bool:
    """Whether the model is sharded; if it is, let every unit give its weights back now and after every pass."""
    units = _units(model)
    for unit in units:
        unit.reshard()
        unit.set_reshard_after_forward(True, recurse=False)
    return bool(units)


def require_shards(parameters: Sequence[Tensor]) -> None:
    """Refuse a sharded model of which some trainable weights are not.

    Raises:
        ConfigError: some are not.
    """
    plain = sum(not is_sharded(p) for p in parameters)
    if plain:
        raise ConfigError(
            f"{plain} of {len(parameters)} trainable weights are not sharded and the others are, so that one norm "
            "cannot be taken over all of them. Put the adapter on the model before it is sharded."
        )


def gather_for(model: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Gather the weights of modules that a loss calls by themselves, until its backward pass; nothing if not sharded.

    A unit gathers its own when it is called. A module within a unit has a part of them outside the unit's pass.
    """
    units = _units(model)
    for module in modules:
        if not isinstance(module, FSDPModule) and any(is_sharded(p) for p in module.parameters(recurse=False)):
            *_, innermost = (unit for unit in units if any(child is module for child in unit.modules()))
            innermost.unshard()


@torch.no_grad()
def make_whole(model: nn.Module) -> None:
    """Gather a trained model onto the first rank's CPU, to be saved; of an adapter's model only what was trained.

    All ranks call it together. The model computes nothing any more.
    """
    made: dict[int, nn.Parameter] = {}  # by the part: tied weights stay one
    share_out(model)
    for module in model.modules():
        for name, part in [*module.named_parameters(recurse=False, remove_duplicate=False)]:
            if not is_sharded(part) or (isinstance(model, PeftModel) and not part.requires_grad):
                continue
            if id(part) not in made:
                full = whole(part.detach())
                made[id(part)] = nn.Parameter(full.cpu(), part.requires_grad) if dist.get_rank() == 0 else part
            module._parameters[name] = made[id(part)]


def _units(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sharded_gradient(
    total: Tensor, parameters: Sequence[nn.Parameter], everything: Sequence[nn.Parameter]
) -> Gradients:
    """d total / d parameters, summed over ranks: each a DTensor like its parameter, zero where nothing depends on it.

    Args:
        total: This rank's scalar.
        parameters: The weights whose gradient is wanted.
        everything: All trainable weights, whose ``.grad`` is left as it was.
    """
    before = [p.grad for p in everything]
    try:
        for p in everything:
            p.grad = None
        total.backward()
        # FSDP has averaged over the ranks that share the weights out.
        return [torch.zeros_like(p) if p.grad is None else p.grad * _num_ranks(p) for p in parameters]
    finally:
        for p, grad in zip(everything, before, strict=True):
            p.grad = grad


def _num_ranks(parameter: Tensor) -> int:
    assert isinstance(parameter, DTensor), "only sharded weights come here"
    return parameter.device_mesh.size()


# -- the check at the start of a run -----------------------------------------------------------------------------------


def check_sharding(
    model: nn.Module, parameters: Sequence[nn.Parameter], total: Callable[[], Tensor], *, allowed: float
) -> None:
    """Compare sharded gradients and a sharded perturbation with the plain path, on a weight of every unit.

    The plain path is that of a model that is not sharded: ``torch.autograd.grad`` with respect to the tensor that a
    module computes with, and one sum over ranks. The weights are the smallest that are trained, which needs no room.

    Args:
        model: The sharded model.
        parameters: Its trainable weights.
        total: A function that makes one pass and gives this rank's scalar, with its graph.
        allowed: Largest distance, as a share of the gradient's norm, that rounding explains.

    Raises:
        TrainingError: they differ by more than that; the message has both numbers.
    """
    witnesses = _witnesses(model)
    with _watching(witnesses, lambda tensor: tensor) as used:
        value = total()
    plain = [
        all_reduce(g.contiguous()) for g in torch.autograd.grad(value, list(used.values()), materialize_grads=True)
    ]
    witnesses = [witnesses[index] for index in used]  # those that the pass has used
    parts = [getattr(module, name) for module, name in witnesses]
    gradients = sharded_gradient(total(), parts, parameters)
    found = [whole(g) for g in gradients]
    off, ours, theirs = (float(norm(g)) for g in (difference(found, plain), found, plain))
    if not off <= allowed * theirs:
        raise TrainingError(
            f"self-check: under FSDP the gradient of {len(parts)} weights has norm {ours:.6g}, without it "
            f"{theirs:.6g}, and they are {off:.3g} apart. This version of torch does not reduce gradients as this "
            "library expects. Train with DDP, and report it."
        )
    _check_perturbation(witnesses, parts, gradients, total)


def _check_perturbation(
    witnesses: Sequence[Place], parts: Sequence[nn.Parameter], gradients: Gradients, total: Callable[[], Tensor]
) -> None:
    """Compare moved weights with those that the next pass computes with, right after a pass that gathered them."""
    with torch.no_grad():
        total()
    with perturbed_weights(parts, [g + 1.0 for g in gradients]), torch.no_grad():
        with _watching(witnesses, lambda tensor: tensor.detach().clone()) as used:  # gathered weights are freed
            total()
        for index, (part, (module, name)) in enumerate(zip(parts, witnesses, strict=True)):
            moved = whole(part.detach()).to(used[index].dtype)
            if not torch.equal(moved, used[index]):
                raise TrainingError(
                    f"self-check: {type(module).__name__}.{name} was moved to norm {float(moved.norm()):.6g}, and the "
                    f"next pass computed with norm {float(used[index].norm()):.6g}. This version of torch keeps "
                    "gathered weights for longer than this library expects. Train with DDP, and report it."
                )


def _witnesses(model: nn.Module) -> list[Place]:
    """The smallest trainable weight of every unit; one that modules share counts once."""
    smallest: dict[int, tuple[int, Place]] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, unit: int) -> None:
        unit = id(module) if isinstance(module, FSDPModule) else unit
        for name, p in module.named_parameters(recurse=False):
            new = p.requires_grad and id(p) not in seen
            seen.add(id(p))
            if new and (unit not in smallest or p.numel() < smallest[unit][0]):
                smallest[unit] = (p.numel(), (module, name))
        for child in module.children():
            visit(child, unit)

    visit(model, id(model))
    return [place for _, place in smallest.values()]


@contextmanager
def _watching(witnesses: Sequence[Place], keep: Callable[[Tensor], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Inside, what each module first computes with is kept, by its number; what does not run is absent."""
    used: dict[int, Tensor] = {}

    def take(index: int, name: str, module: nn.Module, args: Any) -> None:
        if index not in used:
            used[index] = keep(getattr(module, name))

    handles = [m.register_forward_pre_hook(partial(take, index, name)) for index, (m, name) in enumerate(witnesses)]
    try:
        yield used
    finally:
        for handle in handles:
            handle.remove()
