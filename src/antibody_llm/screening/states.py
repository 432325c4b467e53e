"""Hidden states at the end of a row's prompt, and how far they lie from those of the anchors.

A state is the output of a decoder layer at the last token before an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.collate import pad
from ..data.records import TokenizedRow
from ..errors import TrainingError
from ..likelihood.completion import evaluating, takes_logits_to_keep
from ..likelihood.microbatch import MicroBatch
from ..likelihood.reader import ModelReader
from ..models.layout import decoder_layers
from ..primitives.taps import captured_at


@dataclass(frozen=True)
class Shape:
    """The anchors' means and spread in the space of what alignment can change.

        d(x)^2 = min_c (g - m_c)' S^-1 (g - m_c),    S = (1 - s) C + s m I

    g is what alignment changed in x's states over all layers, m_c the mean of a label's anchors, C their covariance
    within labels, m its mean variance. S is kept by the eigenvectors of C, of which there are fewer than anchors.

    Attributes:
        means: [2, L D]: means of the harmful and of the benign anchors.
        axes: [K, L D]: eigenvectors of C.
        gains: [K]: inverse variance along each axis, less ``floor``.
        floor: Inverse variance along everything else.
    """

    means: Tensor
    axes: Tensor
    gains: Tensor
    floor: float

    def distance(self, change: Tensor) -> Tensor:
        """The distance d of changes [B, L, D]: [B]."""
        means, axes, gains = (part.to(change) for part in (self.means, self.axes, self.gains))
        apart = change.flatten(1)[:, None] - means  # [B, 2, L D]
        squared = self.floor * apart.square().sum(dim=-1) + ((apart @ axes.T).square() * gains).sum(dim=-1)
        return squared.amin(dim=1).clamp(min=0).sqrt()


def normalised(hidden: Tensor) -> Tensor:
    """Scale every state to a root mean square of 1, as the next layer's norm does."""
    return hidden / (hidden.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def position(row: TokenizedRow) -> str:
    """Name a row for errors by its place in the data, 1 for the first."""
    return f"row {row.row_id + 1} of the data"


def states(
    reader: ModelReader,
    rows: Sequence[TokenizedRow],
    *,
    before: bool,
    name: Callable[[TokenizedRow], str] = position,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Hidden states of the last token before each row's first answer, after every layer: [rows, L, D], float32.

    Args:
        reader: The aligned model, and the one before it.
        rows: The rows, whose prompts alone are read.
        before: Whether by the model before its alignment.
        name: Names a row for errors.
        progress: Called with the number of rows of each forward, after it.

    Raises:
        TrainingError: a state is not finite; its row is named.
    """

    def read(model: nn.Module) -> Tensor:
        layers = decoder_layers(model)

        def of(micro: MicroBatch) -> Tensor:
            found = states_of(reader, model, layers, micro).flatten(1)
            if progress is not None:
                progress(len(micro.rows))
            return found

        config: Any = model.config
        width = len(layers) * config.get_text_config().hidden_size
        found = walk(reader, model, rows, of, width)
        require_finite(found, rows, name)
        return found.view(len(found), len(layers), -1)

    if not before:
        return read(reader.model)
    with reader.before_alignment() as model:
        return read(model)


def states_of(reader: ModelReader, model: nn.Module, layers: Sequence[nn.Module], micro: MicroBatch) -> Tensor:
    """States of the last token of each prompt after every layer: [B, L, D], float32."""
    with captured_at(layers, last_of_prompt(micro)) as seen:
        run_prompts(reader, model, micro)
    return torch.stack([state.float() for state in seen], dim=1)


def walk(
    reader: ModelReader,
    model: nn.Module,
    rows: Sequence[TokenizedRow],
    of: Callable[[MicroBatch], Tensor],
    width: int,
) -> Tensor:
    """Call ``ModelReader.over_rows`` without dropout, and return its result on the CPU."""
    with evaluating(model):
        return reader.over_rows(rows, of, width).cpu()


def require_finite(values: Tensor, rows: Sequence[TokenizedRow], name: Callable[[TokenizedRow], str]) -> None:
    """Refuse what is not finite: a NaN compares as false with everything, and its row would pass for harmless."""
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = (~finite.view(len(rows), -1).all(dim=1)).nonzero()[:, 0].tolist()
    first, *others = dict.fromkeys(name(rows[i]) for i in bad)
    alike = f" (and {', '.join(others[:4])}{', ...' if len(others) > 4 else ''})" if others else ""
    raise TrainingError(
        f"{first}{alike}: what the model makes of it is not a finite number, by which nothing can be judged. Take the "
        "row out. If every row reads so, the weights of the model, or of the one before its alignment, are damaged: "
        "copy or align them again."
    )


def last_of_prompt(micro: MicroBatch) -> Tensor:
    """Position of the last token before each row's first answer: [B]."""
    return torch.tensor([row.spans[0][0] - 1 for row in micro.rows])


def run_prompts(reader: ModelReader, model: nn.Module, micro: MicroBatch) -> None:
    """Run the model on the prompts alone."""
    prompts = [
        TokenizedRow(row.row_id, row.input_ids[: row.spans[0][0]], ((0, 0),), row.template) for row in micro.rows
    ]
    tensors = pad(prompts, reader.pad_id, device=next(model.parameters()).device)
    extra = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    with reader.autocast():
        model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False, **extra)
