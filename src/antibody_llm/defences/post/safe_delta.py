"""Safe Delta: keep of the user's update what costs little safety, and make up for it in what is set back.

    H     = mean over tokens of x x' + lambda I,    U'U = H^-1, U upper triangular        x: input under W_a
    c_ij  = D_ij^2 / U_jj^2,                        D = W - W_a                           cost of keeping entry ij
    kept  = the entries with the smallest c, as many as add up to ``budget`` times the sum of all c of the matrix; of
            the share ``exclude`` of columns with the largest 1 / U_jj^2 none
    W    <- W_a + E,    column by column j, from E = 0:
            r = (D_j - E_j) / U_jj  where kept, else 0;    E_jl += r U_jl  for l >= j                      row by row

    W_a   weight of a linear layer before the user's fine-tuning;  W  after it
    x     its inputs on the provider's refusals, prompts included, under the aligned model
    lambda = ``damping`` times the mean of H's diagonal

(W - W_a) x is what a change does to a layer's outputs on safe rows, so that D H D' is a second-order loss of safety.
An entry that is kept ends at the user's value, E_ij = D_ij. One that is not ends at the value that loses least safety
given the entries kept to the left of it, which is not W_a's: Optimal Brain Surgeon's update, as SparseGPT makes it.

The change has full rank, so that an adapter is merged first, and a whole model comes out. Linear layers of the decoder
layers alone count; embeddings, norms and the head stay as the user trained them. One pass over the refusals for each
decoder layer, so that the squares of one layer's inputs are in memory.

Reference: Ning Lu, Shengcai Liu, Jiahao Wu, Weiyu Chen, Zhirui Zhang, Yew-Soon Ong, Qi Wang, Ke Tang, Safe Delta:
Consistently Preserving Safety when Fine-Tuning LLMs on Diverse Datasets, ICML 2025, https://arxiv.org/abs/2505.12038:
costs, cheapest first, the excluded columns and the compensation as released. Ours: the budget as a share of each
matrix's cost (there an absolute number), its default and that of ``exclude``, and inputs that are all read under the
aligned model (there each layer's under the layers already changed).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.roles import Role
from ...errors import ConfigError
from ...events import report_progress
from ...likelihood.inputs import products, summed_inputs
from ...likelihood.reader import ModelReader
from ...models.matrices import counterparts, decoder_matrices
from ...training.defence import About, Repair
from ...training.preparation import TrainingData

BLOCK = 128
"""Columns whose effect on those behind them is computed at once."""


@dataclass(frozen=True, kw_only=True)
class SafeDeltaConfig:
    """Hyperparameters."""

    budget: float = 0.1
    """Share of each matrix's cost that the kept entries may have, 0 to 1. Ours."""
    exclude: float = 0.0
    """Share of each matrix's columns, those of the largest curvature, of which nothing is kept. Ours."""
    damping: float = 0.01
    """lambda over the mean of H's diagonal; SparseGPT's."""

    def __post_init__(self) -> None:
        for name in ("budget", "exclude"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"safe-delta.{name} is {getattr(self, name)}: a share lies between 0 and 1.")
        if not 0 < self.damping < float("inf"):
            raise ConfigError(f"safe-delta.damping is {self.damping}: must be a finite number above 0.")


def inverse_factor(moment: Tensor, damping: float) -> Tensor:
    """U: [columns, columns], float32, of the damped inverse of a second moment.

    Args:
        moment: Mean of x x', [columns, columns].
        damping: lambda over the mean of its diagonal.
    """
    size = float(moment.diagonal().mean())
    added = damping * (size if size > 0 else 1.0)  # a layer whose inputs are all 0 weighs every column alike
    damped = moment.double() + added * torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def kept_entries(delta: Tensor, factor: Tensor, budget: float, exclude: float) -> Tensor:
    """Which entries of D are kept: [rows, columns], bool."""
    diagonal = factor.diagonal()
    cost = (delta / diagonal).square().double()
    allowed = budget * float(cost.sum())
    num_excluded = round(exclude * len(diagonal))
    cost[:, diagonal.argsort(stable=True)[:num_excluded]] = torch.inf  # a small U_jj is a large curvature
    ranked, order = cost.flatten().sort(stable=True)
    kept = torch.zeros(cost.numel(), dtype=torch.bool, device=delta.device)
    kept[order[ranked.cumsum(0) <= allowed]] = True
    return kept.view_as(delta)


def compensated(delta: Tensor, kept: Tensor, factor: Tensor) -> Tensor:
    """E: [rows, columns], float32."""
    change = torch.zeros_like(delta)
    for start in range(0, delta.shape[1], BLOCK):
        end = min(start + BLOCK, delta.shape[1])
        block = slice(start, end)
        steps = torch.zeros_like(delta[:, block])  # r
        for j in range(start, end):
            steps[:, j - start] = torch.where(kept[:, j], delta[:, j] - change[:, j], 0.0) / factor[j, j]
            change[:, j:end] += steps[:, j - start, None] * factor[j, j:end]
        change[:, end:] += steps @ factor[block, end:]
    return torch.where(kept, delta, change)  # bitwise the user's values


class SafeDelta(Repair):
    """Repair that binds selection and compensation to the layers of a fine-tuned model and an aligned one."""

    config: SafeDeltaConfig
    about = About(
        summary="of the user's update only what costs little safety is kept, and the rest makes up for it",
        paper="2505.12038",
        forwards=1,  # of every refusal, for each decoder layer
        backwards=0,
        extra_memory="the aligned model; the square of the inputs of one decoder layer's matrices, three times",
    )
    options = SafeDeltaConfig
    reads = (Role.ALIGNMENT,)
    needs_aligned = True
    merges = True
    small_steps = True
    neutral = {"budget": 1.0, "exclude": 0.0}

    def __init__(self, config: SafeDeltaConfig) -> None:
        self.config = config

    def prepare(self, data: TrainingData) -> TrainingData:
        """Keep the provider's rows that refuse.

        Raises:
            DataError: no row refuses.
        """
        return data.with_records(Role.ALIGNMENT, data.refusals("safe-delta"))

    @torch.no_grad()
    def repair(self, reader: ModelReader, *, seed: int) -> None:
        """Change the weights, in place."""
        config, blocks = self.config, decoder_matrices(reader.model)
        if config.budget == 1 and config.exclude == 0:
            return
        num_tokens = sum(len(row.input_ids) for row in reader.rows[Role.ALIGNMENT])
        with reader.before_finetuning() as aligned:
            earlier = [counterparts(block, aligned) for block in blocks]
            for number, (block, before) in enumerate(zip(blocks, earlier, strict=True)):
                report_progress("repairing, layers", number, len(blocks))
                layers = [matrix.layer for matrix in before]
                moments = summed_inputs(reader, Role.ALIGNMENT, layers, products, model=aligned)
                for matrix, its, moment in zip(block, before, moments, strict=True):
                    w_a = its.weight()
                    delta = matrix.weight() - w_a
                    factor = inverse_factor(moment / num_tokens, config.damping)
                    kept = kept_entries(delta, factor, config.budget, config.exclude)
                    matrix.put(torch.where(kept, matrix.weight(), w_a + compensated(delta, kept, factor)))
        report_progress("repairing, layers", len(blocks), len(blocks))
