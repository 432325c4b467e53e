"""Evidence per row: how likely a refusal and the row's own completion are, before and after alignment.

    ratio  NLL(r|x) - NLL(y|x)                   Antibody's score: low where a refusal is likelier than the target
    shift  NLL_base(r|x) - NLL(r|x)              how much alignment raised the likelihood of refusing x; high = harm
    gap    shift - (NLL_base(y|x) - NLL(y|x))    the shift of the refusal minus that of the completion

All in nats per token, r averaged over k generic refusals. ``ratio`` mixes whether the model wants to refuse x with
whether it knows y already; ``shift`` asks only what alignment changed, and what base and aligned model share (novelty,
length, format) cancels. ``shift`` and ``gap`` are ours.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ..data.records import TokenizedRow
from ..errors import ModelError
from ..training.refusals import Refusals, Scoring
from ..training.step import MicroBatch, StepContext

ANCHORS = "anchors.parquet"
"""In a model's folder: evidence of the provider's own labelled rows, scored when the model was aligned."""
_ROWS = "rows"


@dataclass(frozen=True)
class Evidence:
    """Negative log-likelihoods, nats per token: [rows] each; over several trained turns the row's worst one.

    Attributes:
        refusal: NLL(r|x) under the aligned model, mean over k refusals.
        completion: NLL(y|x) under the aligned model.
        base_refusal: NLL(r|x) under the model before alignment.
        base_completion: NLL(y|x) under the model before alignment.
    """

    refusal: Tensor
    completion: Tensor
    base_refusal: Tensor
    base_completion: Tensor

    @property
    def ratio(self) -> Tensor:
        """Low where the aligned model would rather refuse."""
        return self.refusal - self.completion

    @property
    def shift(self) -> Tensor:
        """High where alignment made refusing likelier."""
        return self.base_refusal - self.refusal

    @property
    def gap(self) -> Tensor:
        """The shift of the refusal minus the shift of the completion."""
        return self.shift - (self.base_completion - self.completion)


def collect(
    model: nn.Module,
    rows: Sequence[TokenizedRow],
    refusals: Refusals,
    *,
    pad_id: int,
    base: nn.Module | None = None,
    num_refusals: int = 4,
    batch_size: int = 32,
) -> Evidence:
    """Evidence of every row, without gradient.

    Args:
        model: The aligned model. With an adapter, the base is the same model with the adapter off.
        rows: In any order.
        refusals: Row i is scored against numbers i * k .. i * k + k - 1 (mod n), i its row id.
        pad_id: What to pad with.
        base: The model before alignment, where that is not the adapter switched off.
        num_refusals: k.
        batch_size: Rows per forward pass.

    Raises:
        ModelError: there is no base: neither an adapter nor ``base``.
    """
    was_training = model.training
    model.eval()
    try:
        context = StepContext(model, rows={_ROWS: rows}, pad_id=pad_id, refusals=refusals, batch_size=batch_size)
        refusal, completion = _likelihoods(context, num_refusals)
        if base is not None:
            base.eval()
            for p in base.parameters():
                p.requires_grad_(True)
            other = StepContext(base, rows={_ROWS: rows}, pad_id=pad_id, refusals=refusals, batch_size=batch_size)
            without: AbstractContextManager[None] = nullcontext()
        elif hasattr(model, "disable_adapter"):
            other, without = context, context.without_adapter()
        else:
            raise ModelError("the shift compares with the model before alignment, and there is none. Name it: --base.")
        with without:
            base_refusal, base_completion = _likelihoods(other, num_refusals)
    finally:
        model.train(was_training)
    return Evidence(refusal, completion, base_refusal, base_completion)


def _likelihoods(context: StepContext, num_refusals: int) -> tuple[Tensor, Tensor]:
    """([rows], [rows]): of the refusals and of the completion, at the turn where refusing is likeliest."""

    def of_both(micro: MicroBatch) -> Tensor:
        total = None
        for number in range(num_refusals):
            index = [row.row_id * num_refusals + number for row in micro.rows]
            completion, refusal = context.completion_and_refusal_nll(micro, Scoring.AUTO, index)
            total = refusal.mean if total is None else total + refusal.mean
        assert total is not None, "at least one refusal"
        worst = (total / num_refusals).masked_fill(~completion.present, torch.inf).min(dim=1)
        return torch.stack([worst.values, completion.mean.gather(1, worst.indices[:, None])[:, 0]], dim=1)

    refusal, completion = context.over_rows(_ROWS, of_both, width=2).unbind(dim=1)
    return refusal, completion


def write_anchors(folder: Path, evidence: Mapping[str, Evidence]) -> None:
    """Store the evidence of the provider's labelled rows beside a model, in one file.

    Args:
        folder: Of the model.
        evidence: By label: "harmful", "benign".
    """
    columns: dict[str, list[object]] = {"label": []}
    for label, of_label in evidence.items():
        columns["label"] += [label] * len(of_label.refusal)
        for name in ("refusal", "completion", "base_refusal", "base_completion"):
            columns.setdefault(name, []).extend(getattr(of_label, name).tolist())
    temporary = folder / f".{ANCHORS}.tmp"
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(folder / ANCHORS)


def read_anchors(folder: Path) -> dict[str, Evidence]:
    """By label; empty where the model carries none."""
    if not (folder / ANCHORS).is_file():
        return {}
    table = pq.read_table(folder / ANCHORS).to_pydict()
    return {
        label: Evidence(
            *(
                torch.tensor([v for v, of in zip(table[name], table["label"], strict=True) if of == label])
                for name in ("refusal", "completion", "base_refusal", "base_completion")
            )
        )
        for label in dict.fromkeys(table["label"])
    }
