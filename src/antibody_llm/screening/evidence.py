"""Evidence per row that the aligned model holds its prompt, or its answer, for harmful. High means harm.

    ratio            NLL(y|x) - NLL(r|x)                       Antibody's score with its sign turned
    shift            NLL_0(r|x) - NLL(r|x)                     how far alignment raised the likelihood of refusing
    gap              shift - (NLL_0(y|x) - NLL(y|x))           ... minus how far it raised that of the answer
    refusal-feature  <h_l(x), u_l>                             the last prompt token's hidden state, at one layer,
                                                               along the harmful minus the harmless mean
    feature-shift    sum_l <g_l(x) - g0_l(x), v_l> - offset    what alignment changed of that state (g = h / rms(h)),
                                                               along what tells harmful from harmless rows: 0 at the
                                                               harmless mean, 1 at the harmful one (anchors.py)

NLL in nats per token, of k generic refusals r averaged; the index 0 marks the model before its alignment. x is all
that stands before a trained answer y; of a row with several, each measure takes its worst one.

``ratio`` mixes whether the model wants to refuse x with whether it knows y, and ``refusal-feature`` what alignment made
of x with what x always looked like. The two shifts ask only what alignment *changed*: novelty, length and format are
the same before and after, and cancel.

Sources: ``ratio``: Antibody (2603.00498), Sec. 4.2. ``refusal-feature``: the refusal direction as a teacher of which
prompts are harmful (2506.07356). ``shift`` is the log-ratio of policy and reference for a refusal, and ``gap`` DPO's
implicit reward (2305.18290, Sec. 4) of refusing over answering, with alignment as what is rewarded. Both, and
``feature-shift``, are ours in this use.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..data.collate import pad
from ..data.records import TokenizedRow
from ..errors import TrainingError
from ..models.layout import decoder_layers
from ..primitives.taps import captured_at
from ..training.batches import MicroBatch
from ..training.likelihood import Head, usable_head
from ..training.refusals import Scoring, completion_and_several_refusals, usable_scoring
from ..training.step import StepContext


class EvidenceKind(StrEnum):
    """Kinds of evidence; the table at the head of this file."""

    FEATURE_SHIFT = "feature-shift"
    SHIFT = "shift"
    GAP = "gap"
    RATIO = "ratio"
    REFUSAL_FEATURE = "refusal-feature"

    @property
    def needs_base(self) -> bool:
        """Whether it compares with the model before its alignment."""
        return self in (EvidenceKind.FEATURE_SHIFT, EvidenceKind.SHIFT, EvidenceKind.GAP)

    @property
    def needs_probe(self) -> bool:
        """Whether it looks at hidden states."""
        return self in (EvidenceKind.FEATURE_SHIFT, EvidenceKind.REFUSAL_FEATURE)

    @property
    def needs_answers(self) -> bool:
        """Whether the row's own answer counts, and not its prompt alone."""
        return self in (EvidenceKind.GAP, EvidenceKind.RATIO)


@dataclass(frozen=True)
class Probe:
    """Where to look at hidden states: one direction per layer, for each of two measures.

    Attributes:
        shift: [L, D]: v_l. L counts decoder layers, D is the hidden size.
        offset: Of feature-shift.
        state: [L, D]: u_l at the one layer chosen, zero elsewhere.
    """

    shift: Tensor
    offset: float
    state: Tensor

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """([B], [B]): projections of states [B, L, D] on ``shift`` (normalised) and on ``state``."""
        shift, state = self.shift.to(hidden), self.state.to(hidden)
        return (normalised(hidden) * shift).sum(dim=(1, 2)), (hidden * state).sum(dim=(1, 2))


@dataclass(frozen=True)
class Evidence:
    """What one pass over rows found; one number per *answer*, and which row each belongs to.

    Attributes:
        num_rows: Rows.
        row: [answers], int64: the row's position.
        readings: By (what, before alignment or not): [answers], float32. What: "refusal" and "completion", nats per
            token; "shift" and "state", projections on the probe's directions.
        nearest: [answers], int64: the likeliest of the refusals scored, its number in the list; -1 where none was.
        offset: Of the probe.
    """

    num_rows: int
    row: Tensor
    readings: dict[tuple[str, bool], Tensor]
    nearest: Tensor
    offset: float = 0.0
    distance: Tensor | None = None
    """[answers], float32: how far each lies from the anchors; None where that was not read."""

    def has(self, measure: EvidenceKind) -> bool:
        """Whether the pass read what the measure is made of."""
        return all(key in self.readings for key in _PARTS[measure])

    def of(self, measure: EvidenceKind) -> Tensor:
        """[num_rows], float32, high means harm; of a row with several answers the highest."""
        parts = [self.readings[key] for key in _PARTS[measure]]
        values = _FORMULAS[measure](*parts)
        if measure is EvidenceKind.FEATURE_SHIFT:
            values = values - self.offset
        worst = torch.full((self.num_rows,), -torch.inf)
        return worst.scatter_reduce(0, self.row, values, "amax")

    def distances(self) -> Tensor:
        """[num_rows], float32: how far each row lies from the anchors, at the answer that its feature-shift is of."""
        assert self.distance is not None, "the pass was not given the shape of the anchors"
        shift, before = (self.readings["shift", when] for when in (NOW, BEFORE))
        counts = shift - before - self.offset == self.of(EvidenceKind.FEATURE_SHIFT)[self.row]
        nearest = torch.full((self.num_rows,), torch.inf)
        return nearest.scatter_reduce(0, self.row[counts], self.distance[counts], "amin")

    def nearest_refusal(self) -> Tensor:
        """[num_rows], int64: of a row's answers, that of the first."""
        first = torch.full((self.num_rows,), -1, dtype=torch.int64)
        first[self.row.flip(0)] = self.nearest.flip(0)
        return first


@dataclass(frozen=True)
class Shape:
    """Where the anchors lie among all that alignment could change, and how they spread there.

        d(x)^2 = min_c (g - m_c)' S^-1 (g - m_c),    S = (1 - s) C + s m I

    g is what alignment changed of x's states over all layers, m_c the mean of a label's anchors, C their covariance
    within labels, m its mean variance. S is kept by the eigenvectors of C, of which there are fewer than anchors.

    Attributes:
        means: [2, L D]: of the harmful and of the benign anchors.
        axes: [K, L D]: eigenvectors of C.
        gains: [K]: inverse variance along each axis, less ``floor``.
        floor: Inverse variance along everything else.
    """

    means: Tensor
    axes: Tensor
    gains: Tensor
    floor: float

    def distance(self, change: Tensor) -> Tensor:
        """d of changes [B, L, D]: [B]."""
        means, axes, gains = (part.to(change) for part in (self.means, self.axes, self.gains))
        apart = change.flatten(1)[:, None] - means  # [B, 2, L D]
        squared = self.floor * apart.square().sum(dim=-1) + ((apart @ axes.T).square() * gains).sum(dim=-1)
        return squared.amin(dim=1).clamp(min=0).sqrt()


def normalised(hidden: Tensor) -> Tensor:
    """Every state scaled to a root mean square of 1, as the next layer's norm hands it on."""
    return hidden / (hidden.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def position(row: TokenizedRow) -> str:
    """What errors call a row of which no more is known: its place in the data, 1 for the first."""
    return f"row {row.row_id + 1} of the data"


BEFORE, NOW = True, False
_PARTS: dict[EvidenceKind, tuple[tuple[str, bool], ...]] = {
    EvidenceKind.RATIO: (("completion", NOW), ("refusal", NOW)),
    EvidenceKind.SHIFT: (("refusal", BEFORE), ("refusal", NOW)),
    EvidenceKind.GAP: (("refusal", BEFORE), ("refusal", NOW), ("completion", BEFORE), ("completion", NOW)),
    EvidenceKind.REFUSAL_FEATURE: (("state", NOW),),
    EvidenceKind.FEATURE_SHIFT: (("shift", NOW), ("shift", BEFORE)),
}
_FORMULAS: dict[EvidenceKind, Callable[..., Tensor]] = {
    EvidenceKind.RATIO: lambda y, r: y - r,
    EvidenceKind.SHIFT: lambda r0, r: r0 - r,
    EvidenceKind.GAP: lambda r0, r, y0, y: (r0 - r) - (y0 - y),
    EvidenceKind.REFUSAL_FEATURE: lambda h: h,
    EvidenceKind.FEATURE_SHIFT: lambda h, h0: h - h0,
}


def collect(
    context: StepContext,
    rows: Sequence[TokenizedRow],
    measures: Collection[EvidenceKind],
    *,
    probe: Probe | None = None,
    num_refusals: int = 4,
    progress: Callable[[int], None] | None = None,
    name: Callable[[TokenizedRow], str] = position,
    shape: Shape | None = None,
) -> Evidence:
    """One pass over ``rows`` with the aligned model and, where a measure compares, one with the model before.

    A prompt is computed once for its answer and all refusals, answers of one length run together, no gradient is taken,
    and the ranks share the rows. A row's numbers do not depend on the rows beside it.

    Args:
        context: The aligned model, the one before it, refusals.
        rows: In any order. Row i is scored against refusals i * k .. i * k + k - 1 (mod n), i its row id.
        measures: What is wanted.
        probe: For measures that look at hidden states.
        num_refusals: k.
        progress: Told the number of answers read, twice where two models read them.
        name: What errors call a row.
        shape: Of the anchors, for each row's distance from them. It is read along with feature-shift, the only measure
            that may be asked for then.

    Raises:
        ModelError: a measure compares with the model before alignment, and there is none.
        TrainingError: what was read of a row is not finite; names it.
    """
    answers = [
        TokenizedRow(row.row_id, row.input_ids[:end], ((start, end),), row.template)
        for row in rows
        for start, end in row.spans
    ]
    owner = list(chain.from_iterable([i] * len(row.spans) for i, row in enumerate(rows)))
    if shape is not None:
        assert probe is not None, "a measure of hidden states needs a probe"
        assert set(measures) == {EvidenceKind.FEATURE_SHIFT}, "distances come with feature-shift alone"
        both, distance = _read_change(context, answers, probe, shape, progress)
        for values in (*both.values(), distance):
            _require_finite(values, answers, name)
        unsought = torch.full((len(answers),), -1)
        return Evidence(len(rows), torch.tensor(owner), both, unsought, probe.offset, distance)
    keys = {key for measure in measures for key in _PARTS[measure]}
    readings: dict[tuple[str, bool], Tensor] = {}
    nearest = torch.full((len(answers),), -1)
    now, before = ({what for what, when in keys if when is time} for time in (NOW, BEFORE))
    if now:
        found, nearest = _read(context, context.model, answers, now, probe, num_refusals, progress)
        readings |= {(what, NOW): values for what, values in found.items()}
    if before:
        with context.before_alignment() as model:
            found, _ = _read(context, model, answers, before, probe, num_refusals, progress)
        readings |= {(what, BEFORE): values for what, values in found.items()}
    for values in readings.values():
        _require_finite(values, answers, name)
    return Evidence(len(rows), torch.tensor(owner), readings, nearest, probe.offset if probe else 0.0)


def states(
    context: StepContext,
    rows: Sequence[TokenizedRow],
    *,
    before: bool,
    name: Callable[[TokenizedRow], str] = position,
) -> Tensor:
    """[rows, L, D], float32: hidden states of the last token before each row's first answer, after every layer.

    Raises:
        TrainingError: one of a row is not finite; names the row.
    """

    def read(model: nn.Module) -> Tensor:
        layers = decoder_layers(model)

        def of(micro: MicroBatch) -> Tensor:
            return _states_of(context, model, layers, micro).flatten(1)

        config: Any = model.config
        width = len(layers) * config.get_text_config().hidden_size
        found = _walk(context, model, rows, of, width)
        _require_finite(found, rows, name)
        return found.unflatten(1, (len(layers), -1))

    if not before:
        return read(context.model)
    with context.before_alignment() as model:
        return read(model)


def _read(
    context: StepContext,
    model: nn.Module,
    answers: Sequence[TokenizedRow],
    names: set[str],
    probe: Probe | None,
    num_refusals: int,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Readings of one model, and the nearest refusal of each answer."""
    looks = bool(names & {"shift", "state"})
    layers = decoder_layers(model) if looks else []
    scoring = usable_scoring(model, Scoring.AUTO, context.head)

    def of(micro: MicroBatch) -> Tensor:
        read = {}
        with captured_at(layers, _last_of_prompt(micro)) as seen:
            if "refusal" in names:
                numbers = [[row.row_id * num_refusals + j for j in range(num_refusals)] for row in micro.rows]
                with context.autocast():
                    completion, refusal = completion_and_several_refusals(
                        model,
                        micro,
                        context.refusals,
                        numbers,
                        pad_id=context.pad_id,
                        scoring=scoring,
                        head=context.head,
                        with_completion="completion" in names,
                    )
                read["refusal"] = refusal.mean(dim=1)
                likeliest = torch.tensor(numbers, device=refusal.device).gather(1, refusal.argmin(dim=1, keepdim=True))
                read["nearest"] = likeliest[:, 0] % len(context.refusals)
                if completion is not None:
                    read["completion"] = completion
            else:
                _run_prompts(context, model, micro)
        if looks:
            assert probe is not None, "a measure of hidden states needs a probe"
            read["shift"], read["state"] = probe.read(torch.stack([state.float() for state in seen], dim=1))
        if progress is not None:
            progress(len(micro.rows))
        return torch.stack([read.get(name, torch.zeros(len(micro.rows))).to(context.device) for name in _COLUMNS], 1)

    found = dict(zip(_COLUMNS, _walk(context, model, answers, of, len(_COLUMNS)).unbind(dim=1), strict=True))
    nearest = found["nearest"].long() if "refusal" in names else torch.full((len(answers),), -1)
    return {name: found[name] for name in names}, nearest


def _read_change(
    context: StepContext,
    answers: Sequence[TokenizedRow],
    probe: Probe,
    shape: Shape,
    progress: Callable[[int], None] | None,
) -> tuple[dict[tuple[str, bool], Tensor], Tensor]:
    """The readings of feature-shift, and distances. Both models see one batch after the other, so that the states of no
    more than a batch are in memory."""
    layers = decoder_layers(context.model)

    def of(micro: MicroBatch) -> Tensor:
        now = _states_of(context, context.model, layers, micro)
        with context.before_alignment() as model, _evaluating(model):
            other = layers if model is context.model else decoder_layers(model)
            before = _states_of(context, model, other, micro)
        if progress is not None:
            progress(2 * len(micro.rows))
        shifts = [probe.read(states)[0] for states in (now, before)]
        return torch.stack([*shifts, shape.distance(normalised(now) - normalised(before))], dim=1)

    after, before, distance = _walk(context, context.model, answers, of, 3).unbind(dim=1)
    return {("shift", NOW): after, ("shift", BEFORE): before}, distance


def _states_of(context: StepContext, model: nn.Module, layers: Sequence[nn.Module], micro: MicroBatch) -> Tensor:
    """[B, L, D], float32: states of the last token of each prompt after every layer."""
    with captured_at(layers, _last_of_prompt(micro)) as seen:
        _run_prompts(context, model, micro)
    return torch.stack([state.float() for state in seen], dim=1)


_COLUMNS = ("refusal", "completion", "shift", "state", "nearest")


def _walk(
    context: StepContext,
    model: nn.Module,
    rows: Sequence[TokenizedRow],
    of: Callable[[MicroBatch], Tensor],
    width: int,
) -> Tensor:
    """``context.over_rows`` without dropout, on the CPU."""
    with _evaluating(model):
        return context.over_rows(rows, of, width).cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model has no dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _require_finite(values: Tensor, rows: Sequence[TokenizedRow], name: Callable[[TokenizedRow], str]) -> None:
    """A NaN compares as false with everything: further on, a row that reads so would pass for harmless."""
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = (~finite.view(len(rows), -1).all(dim=1)).nonzero()[:, 0].tolist()
    first, *others = dict.fromkeys(name(rows[i]) for i in bad)
    alike = f" (likewise {', '.join(others[:4])}{', ...' if len(others) > 4 else ''})" if others else ""
    raise TrainingError(
        f"{first}{alike}: what the model makes of it is not a finite number, by which nothing can be judged. Take the "
        "row out. If every row reads so, the weights of the model, or of the one before its alignment, are damaged: "
        "copy or align them again."
    )


def _last_of_prompt(micro: MicroBatch) -> Tensor:
    return torch.tensor([row.spans[0][0] - 1 for row in micro.rows])


def _run_prompts(context: StepContext, model: nn.Module, micro: MicroBatch) -> None:
    """One forward of the prompts alone."""
    prompts = [
        TokenizedRow(row.row_id, row.input_ids[: row.spans[0][0]], ((0, 0),), row.template) for row in micro.rows
    ]
    tensors = pad(prompts, context.pad_id, device=next(model.parameters()).device)
    extra = {"logits_to_keep": 1} if usable_head(model, Head.KEPT) is Head.KEPT else {}
    with context.autocast():
        model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False, **extra)
