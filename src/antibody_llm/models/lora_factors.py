"""The low-rank factors of an adapter: found, joined for a moment by further products, and widened for good."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ModelError

Product = tuple[Tensor, Tensor]
"""(A, B), [r, columns] and [rows, r]: the product is B A."""


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """One layer with an adapter on it: its output has scaling * B A x added.

    Attributes:
        layer: PEFT's layer.
        a: A, [r, columns].
        b: B, [rows, r].
        scaling: The factor, alpha / r as a rule.
    """

    layer: Any
    a: nn.Parameter
    b: nn.Parameter
    scaling: float


def lora_factors(model: nn.Module) -> list[LoraFactors]:
    """The layers of the active adapter in the model's order; none where there is no adapter.

    Raises:
        ModelError: the adapter is no plain LoRA, so that its layers do not add B A x.
    """
    if not isinstance(model, PeftModel):
        return []
    name = model.active_adapter
    found = []
    for module in model.modules():
        if name not in getattr(module, "lora_A", {}):
            continue
        layer: Any = module
        if name in layer.lora_variant or layer.lora_bias.get(name, False):
            raise ModelError("the adapter is a variant of LoRA (DoRA, a bias), and only plain factors are understood.")
        found.append(LoraFactors(layer, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]))
    return found


@contextmanager
def products_added(factors: Sequence[LoraFactors], products: Sequence[Sequence[Product]]) -> Iterator[None]:
    """Inside, layer l puts out scaling * sum B A x more, over the products for it; without gradient for A and B.

    Run the backward pass inside too, since gradient checkpointing computes the outputs again.
    """
    handles = []

    def hook(scaling: float, pairs: Sequence[Product]) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            for a, b in pairs:
                x = args[0].to(a.dtype)
                output = output + (scaling * F.linear(F.linear(x, a), b)).to(output.dtype)
            return output

        return add

    try:
        for of, pairs in zip(factors, products, strict=True):
            handles.append(of.layer.register_forward_hook(hook(of.scaling, pairs)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def widen(model: nn.Module, products: Sequence[Product]) -> None:
    """Add a product to each layer of the active adapter for good; its rank grows, its scaling does not change.

    Args:
        model: A model with an adapter; its factors are new parameters afterwards.
        products: One for each of ``lora_factors``, all of one rank.
    """
    assert isinstance(model, PeftModel), "only an adapter has factors"
    name = model.active_adapter
    config: Any = model.peft_config[name]
    grown = [(of.a.shape[0], a.shape[0]) for of, (a, _) in zip(lora_factors(model), products, strict=True)]
    for of, (a, b) in zip(lora_factors(model), products, strict=True):
        wide_a, wide_b = torch.cat([of.a, a.to(of.a)]), torch.cat([of.b, b.to(of.b)], dim=1)
        for place, weight in ((of.layer.lora_A, wide_a), (of.layer.lora_B, wide_b)):
            rows, columns = weight.shape
            place[name] = nn.Linear(columns, rows, bias=False, device="meta")
            place[name].weight = nn.Parameter(weight.contiguous())
        of.layer.r[name] = wide_a.shape[0]
    (before, more), *others = set(grown)
    if others or config.rank_pattern or config.alpha_pattern:
        raise ModelError("the adapter has layers of different rank, and it cannot be widened alike in all of them.")
    config.r = before + more
    config.lora_alpha *= (config.r / before) ** (0.5 if config.use_rslora else 1.0)
