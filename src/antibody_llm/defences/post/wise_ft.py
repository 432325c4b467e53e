"""WiSE-FT: of the way from the aligned model to the fine-tuned one, go a share.

    theta <- theta_a + share (theta - theta_a)                     every trained weight
    B     <- share B                                               of an adapter that is new: it is the whole change

    theta_a  weights that fine-tuning started from;  theta  those that it came to

A task may be learnt before the end of that way, and what benign rows undo of the alignment lessens with the distance;
how much of either is for an evaluation to say (docs/real-model.md: one of two tasks pays at the half). The weights of
an adapter that goes on with the alignment's are moved as the factors that they are, and stay an adapter of that rank;
their product moves alike up to the product of both changes. It reads no rows.

Reference: Mitchell Wortsman, Gabriel Ilharco, Jong Wook Kim, Mike Li, Simon Kornblith, Rebecca Roelofs, Raphael Gontijo
Lopes, Hannaneh Hajishirzi, Ali Farhadi, Hongseok Namkoong, Ludwig Schmidt, Robust fine-tuning of zero-shot models, CVPR
2022, https://arxiv.org/abs/2109.01903: the weight-space ensemble, with its recommended half. There it keeps the
accuracy of a zero-shot classifier elsewhere; that it is to keep an alignment is ours.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from ...errors import ConfigError, ModelError
from ...likelihood.reader import ModelReader
from ...mentions import setting
from ...models.adapters import merged, trainable_parameters
from ...models.lora_factors import lora_factors
from ...models.matrices import counterparts, decoder_matrices
from ...training.defence import About, Repair


@dataclass(frozen=True, kw_only=True)
class WiseFTConfig:
    """Hyperparameters."""

    share: float = 0.5
    """Share of the way, 0 to 1: 0 is the aligned model, 1 the fine-tuned one. Paper: 0.5."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"wise-ft.share is {self.share}: a share of the way lies between 0 and 1.")


class WiseFT(Repair):
    """Repair that binds the share to a fine-tuned model and the one that its fine-tuning started from."""

    config: WiseFTConfig
    about = About(
        summary="only a share of the way from the aligned model to the fine-tuned one is gone",
        paper="2109.01903",
        forwards=0,
        backwards=0,
        extra_memory="the aligned model, where it is not the adapter switched off",
    )
    options = WiseFTConfig
    needs_aligned = True
    small_steps = True
    neutral = {"share": 1.0}

    def __init__(self, config: WiseFTConfig) -> None:
        self.config = config

    @torch.no_grad()
    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Move the weights, in place.

        Raises:
            ModelError: the aligned model has other weights than the fine-tuned one.
        """
        share = self.config.share
        if share == 1:
            return
        model, tuned = reader.model, trainable_parameters(reader.model)
        with reader.before_finetuning() as aligned:
            pass  # what is switched off inside are weights that are not read here
        if isinstance(model, PeftModel) and (aligned is model or not isinstance(aligned, PeftModel)):
            _require_factors(tuned)
            if aligned is not model:
                _require_one_base(model, aligned)
            for of in lora_factors(model):
                of.b.mul_(share)
            return
        if isinstance(aligned, PeftModel) and not isinstance(model, PeftModel):
            aligned = merged(copy.deepcopy(aligned))
        before = dict(aligned.named_parameters())
        _require_alike(tuned, before)
        if isinstance(model, PeftModel):
            _require_one_base(model, aligned)
        for name, weight in tuned.items():
            weight.copy_(torch.lerp(before[name].to(weight), weight, share))


def _require_one_base(model: nn.Module, aligned: nn.Module) -> None:
    """Refuse an adapter that was trained on other weights than the aligned model has beneath its own, if any."""
    tuned = [matrix for block in decoder_matrices(model) for matrix in block if matrix.factors]
    for matrix, before in zip(tuned, counterparts(tuned, aligned), strict=True):
        same = torch.equal(matrix.under.float(), before.under.float())
        if before.factors is not None and matrix.factors is not None:
            same = same and before.factors.scaling == matrix.factors.scaling
        if not same:
            raise ModelError(
                f"decoder layer {matrix.name}: the adapter was not trained on the model given as {setting('aligned')}, "
                "or does not go on with its adapter, so that there is no way between the two. Give that model, or "
                "merge the adapter first."
            )


def _require_factors(tuned: Mapping[str, nn.Parameter]) -> None:
    for name in tuned:
        if ".lora_A." not in name and ".lora_B." not in name:
            raise ModelError(
                f"{name} was trained beside the adapter's factors, and the model without the adapter does not have it "
                "as it was. Merge the adapter first, and repair the whole model."
            )


def _require_alike(tuned: Mapping[str, nn.Parameter], before: Mapping[str, nn.Parameter]) -> None:
    def shape(weight: Tensor | None) -> str:
        return "not there" if weight is None else f"of shape {list(weight.shape)} there"

    for name, weight in tuned.items():
        other = before.get(name)
        if other is None or other.shape != weight.shape:
            raise ModelError(
                f"{name} is of shape {list(weight.shape)} in the fine-tuned model and {shape(other)} in the one that "
                f"it is compared with. Check {setting('aligned')}."
            )
