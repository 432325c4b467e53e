"""The matrices of a model's decoder layers as the model uses them, an adapter's product included."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..errors import ModelError
from ..mentions import setting
from ..primitives.subspace import column_space
from .layout import decoder_layers
from .lora_factors import LoraFactors, lora_factors

ROUNDING = 1e-2
"""Share of a product's norm that may lie outside the columns of its factors."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One linear layer of a decoder layer.

    Attributes:
        name: The number of the decoder layer, and the layer's name there.
        layer: The layer, whose input the matrix multiplies; PEFT's where an adapter is on it.
        factors: The active adapter's factors, if there is one on the layer.
    """

    name: str
    layer: nn.Module
    factors: LoraFactors | None

    @property
    def under(self) -> Tensor:
        """The weight without the adapter, [rows, columns]."""
        layer: Any = self.layer if self.factors is None else self.factors.layer.get_base_layer()
        weight: Tensor = layer.weight
        return weight.detach()

    def weight(self) -> Tensor:
        """The weight that the layer multiplies by now, [rows, columns], float32; W + s B A unless that is off."""
        w, of = self.under.float(), self.factors
        if of is None or of.layer.disable_adapters:
            return w
        return w + of.scaling * (of.b.detach().float() @ of.a.detach().float())

    @torch.no_grad()
    def put(self, weight: Tensor) -> None:
        """Give the layer another weight, in place: through the factors where there is an adapter.

        Raises:
            ModelError: what is to be added has a higher rank than the adapter.
        """
        of = self.factors
        if of is None:
            self.under.copy_(weight)
            return
        product = (weight - self.under.float()) / of.scaling
        rank = of.a.shape[0]
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(product.shape[1], rank, generator=generator).to(product.device)
        basis = column_space(product @ sample)  # all the columns of a product of that rank
        a = basis.T @ product
        if float((product - basis @ a).norm()) > ROUNDING * float(product.norm()):
            raise ModelError(
                f"{self.name}: the change does not fit the adapter, whose rank is {rank}: it was not trained on the "
                f"model given as {setting('aligned')}, or on its adapter. Give that one, or merge the adapter first."
            )
        of.a.zero_()
        of.b.zero_()
        of.a[: len(a)] = a.to(of.a.dtype)
        of.b[:, : len(a)] = basis.to(of.b.dtype)


def decoder_matrices(model: nn.Module) -> list[list[Matrix]]:
    """The linear layers of each decoder layer, in the model's order."""
    factors = {id(of.layer): of for of in lora_factors(model)} if isinstance(model, PeftModel) else {}
    found = []
    for number, block in enumerate(decoder_layers(model)):
        matrices: list[Matrix] = []
        inside: tuple[str, ...] = ()  # of layers that PEFT has wrapped
        for name, module in block.named_modules():
            if name.startswith(inside) and inside:
                continue
            if id(module) in factors:
                matrices.append(Matrix(f"{number}.{name}", module, factors[id(module)]))
                inside = (*inside, f"{name}.")
            elif isinstance(module, nn.Linear):
                matrices.append(Matrix(f"{number}.{name}", module, None))
        found.append(matrices)
    return found


def counterparts(matrices: Sequence[Matrix], model: nn.Module) -> list[Matrix]:
    """Find these layers in another model of that architecture.

    Raises:
        ModelError: it lacks one, or has it in another shape.
    """
    others = {matrix.name: matrix for block in decoder_matrices(model) for matrix in block}
    found = []
    for matrix in matrices:
        other = others.get(matrix.name)
        if other is None or other.under.shape != matrix.under.shape:
            there = "none there" if other is None else f"of shape {list(other.under.shape)}"
            raise ModelError(
                f"decoder layer {matrix.name} is of shape {list(matrix.under.shape)} in the fine-tuned model and "
                f"{there} in one that it is compared with. Check {setting('aligned')} and {setting('base')}."
            )
        found.append(other)
    return found
