"""Safe LoRA: where the user's update leaves the directions in which alignment moved a matrix, project it onto them.

    V = W_a - W_0,    C = V V' / |V|_F                                       "released"
    D = W - W_a                                                              for a new adapter  s B A
    W <- W_a + C D    where cos(C D, D) < threshold, else W stays

    W_0  weight of a linear layer before alignment;  W_a  after it;  W  after the user's fine-tuning
    cos  over the whole matrix as one vector

C is no projector: it is symmetric, but C C differs from C, and it multiplies by squared singular values of V over its
norm. Where alignment moved a matrix little, C D is all but zero, whatever its direction: such layers are set back to
the aligned ones. ``projector`` "true" has P = U U' instead, U the fewest left singular directions of V that hold the
share ``energy`` of |V|_F^2. All of them would make P the identity, since full-weight training leaves V of full rank.

It reads no rows. Without an adapter the linear layers of all decoder layers count; embeddings, norms and the head stay
as the user trained them. With one its layers do, and the result is an adapter of the same rank, whether it was new or
holds the alignment too.

Reference: Chia-Yi Hsu, Yu-Lin Tsai, Chih-Hsun Lin, Pin-Yu Chen, Chia-Mu Yu, Chun-Ying Huang, Safe LoRA: the Silver
Lining of Reducing Safety Risks when Fine-tuning Large Language Models, NeurIPS 2024, https://arxiv.org/abs/2405.16833:
C and the threshold as released. The true projector, full weights, and an adapter that holds the alignment are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...errors import ConfigError, ModelError
from ...events import report_progress
from ...likelihood.reader import ModelReader
from ...mentions import setting
from ...models.matrices import Matrix, counterparts, decoder_matrices
from ...primitives.subspace import leading_columns
from ...training.defence import About, Repair


@dataclass(frozen=True, kw_only=True)
class SafeLoRAConfig:
    """Hyperparameters."""

    threshold: float = 0.5
    """Cosine below which a layer's update is projected, 0 to 1: at 0 none is, at 1 all that change by it are."""
    projector: Literal["released", "true"] = "released"
    """"released": C. "true": P, as in the head of this file."""
    energy: float = 0.9
    """"true": share of |V|_F^2 within the directions kept, above 0 and up to 1. Ours."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"safe-lora.threshold is {self.threshold}: a cosine between 0 and 1. At 0 nothing moves.")
        if not 0 < self.energy <= 1:
            raise ConfigError(f"safe-lora.energy is {self.energy}: a share above 0 and up to 1.")


def onto(moved: Tensor, update: Tensor, projector: Literal["released", "true"], energy: float) -> Tensor:
    """C D or P D: [rows, columns], float32.

    Args:
        moved: V, [rows, columns], not zero.
        update: D, [rows, columns].
        projector: Which of the two.
        energy: Share of |V|_F^2 in P's directions.
    """
    if projector == "released":
        scaled: Tensor = moved @ (moved.T @ update) / moved.norm()
        return scaled
    basis = leading_columns(moved, energy)
    return basis @ (basis.T @ update)


class SafeLoRA(Repair):
    """Repair that binds the projection to the layers of a fine-tuned model, an aligned one and its base."""

    config: SafeLoRAConfig
    about = About(
        summary="the user's update is projected onto what alignment changed, where it points elsewhere",
        paper="2405.16833",
        forwards=0,
        backwards=0,
        extra_memory="the aligned model and its base, where they are not the adapter switched off; a few matrices",
    )
    options = SafeLoRAConfig
    needs_aligned = True
    needs_base = True
    small_steps = True
    neutral = {"threshold": 0.0}

    def __init__(self, config: SafeLoRAConfig) -> None:
        self.config = config

    @torch.no_grad()
    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Project, in place.

        Raises:
            ModelError: alignment changed none of the layers, or a model has other ones.
        """
        if self.config.threshold == 0:
            return
        tuned = [matrix for block in decoder_matrices(reader.model) for matrix in block]
        if any(matrix.factors for matrix in tuned):
            tuned = [matrix for matrix in tuned if matrix.factors]
        with reader.before_alignment() as base, reader.before_finetuning() as aligned:
            earlier = [counterparts(tuned, model) for model in (base, aligned)]
        moved_one = False
        for number, (matrix, before, after) in enumerate(zip(tuned, *earlier, strict=True)):
            report_progress("repairing, layers", number, len(tuned))
            with reader.before_alignment():
                w_0 = before.weight()
            with reader.before_finetuning():
                w_a = after.weight()
            if bool((w_a != w_0).any()):
                moved_one = True
                self._project(matrix, w_a, w_a - w_0)
        report_progress("repairing, layers", len(tuned), len(tuned))
        if not moved_one:
            raise ModelError(
                f"the aligned model and the one before it have the same weights, so that there is nothing to project "
                f"onto. Check {setting('aligned')} and {setting('base')}."
            )

    def _project(self, matrix: Matrix, aligned: Tensor, moved: Tensor) -> None:
        update = matrix.weight() - aligned
        projection = onto(moved, update, self.config.projector, self.config.energy)
        cosine = torch.nn.functional.cosine_similarity(projection.flatten(), update.flatten(), dim=0)
        if bool(update.any()) and float(cosine) < self.config.threshold:
            matrix.put(aligned + projection)
