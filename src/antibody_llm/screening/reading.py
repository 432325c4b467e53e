"""One pass over rows with the aligned model and, where a measure compares, one with the model before its alignment."""

from collections.abc import Callable, Collection, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ..data.records import TokenizedRow
from ..likelihood.completion import evaluating
from ..likelihood.microbatch import MicroBatch
from ..likelihood.reader import ModelReader
from ..likelihood.refusals import Scoring, completion_and_several_refusals, usable_scoring
from ..models.layout import decoder_layers
from ..primitives.taps import captured_at
from .evidence import BEFORE, NOW, PARTS, Evidence, EvidenceKind
from .probe import Probe
from .states import Shape, last_of_prompt, normalised, position, require_finite, run_prompts, states_of, walk

_COLUMNS = ("refusal", "completion", "shift", "state", "nearest")


def collect(
    reader: ModelReader,
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
        reader: The aligned model, the one before it, refusals.
        rows: Rows in any order. Row i is scored against refusals i * k .. i * k + k - 1 (mod n), i its row id.
        measures: The measures to read.
        probe: The directions, for measures that read hidden states.
        num_refusals: k, the refusals that each row is scored against.
        progress: Called with the number of answers read, twice where two models read them.
        name: Names a row for errors.
        shape: The anchors' spread, for each row's distance from them. It is read along with feature-shift, the only
            measure that may be asked for then.

    Raises:
        ModelError: a measure compares with the model before alignment, and there is none.
        TrainingError: what was read of a row is not finite; the row is named.
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
        both, distance = _read_change(reader, answers, probe, shape, progress)
        for values in (*both.values(), distance):
            require_finite(values, answers, name)
        unsought = torch.full((len(answers),), -1)
        return Evidence(len(rows), torch.tensor(owner), both, unsought, probe.offset, distance)
    keys = {key for measure in measures for key in PARTS[measure]}
    readings: dict[tuple[str, bool], Tensor] = {}
    nearest = torch.full((len(answers),), -1)
    now, before = ({what for what, when in keys if when is time} for time in (NOW, BEFORE))
    if now:
        found, nearest = _read(reader, reader.model, answers, now, probe, num_refusals, progress)
        readings |= {(what, NOW): values for what, values in found.items()}
    if before:
        with reader.before_alignment() as model:
            found, _ = _read(reader, model, answers, before, probe, num_refusals, progress)
        readings |= {(what, BEFORE): values for what, values in found.items()}
    for values in readings.values():
        require_finite(values, answers, name)
    return Evidence(len(rows), torch.tensor(owner), readings, nearest, probe.offset if probe else 0.0)


def _read(
    reader: ModelReader,
    model: nn.Module,
    answers: Sequence[TokenizedRow],
    names: set[str],
    probe: Probe | None,
    num_refusals: int,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Readings of one model, and the likeliest refusal to each answer's prompt."""
    looks = bool(names & {"shift", "state"})
    layers = decoder_layers(model) if looks else []
    scoring = usable_scoring(model, Scoring.AUTO)

    def of(micro: MicroBatch) -> Tensor:
        read = {}
        with captured_at(layers, last_of_prompt(micro)) as seen:
            if "refusal" in names:
                numbers = [[row.row_id * num_refusals + j for j in range(num_refusals)] for row in micro.rows]
                with reader.autocast():
                    completion, refusal = completion_and_several_refusals(
                        model,
                        micro,
                        reader.refusals,
                        numbers,
                        pad_id=reader.pad_id,
                        scoring=scoring,
                        with_completion="completion" in names,
                    )
                read["refusal"] = refusal.mean(dim=1)
                likeliest = torch.tensor(numbers, device=refusal.device).gather(1, refusal.argmin(dim=1, keepdim=True))
                read["nearest"] = likeliest[:, 0] % len(reader.refusals)
                if completion is not None:
                    read["completion"] = completion
            else:
                run_prompts(reader, model, micro)
        if looks:
            assert probe is not None, "a measure of hidden states needs a probe"
            read["shift"], read["state"] = probe.read(torch.stack([state.float() for state in seen], dim=1))
        if progress is not None:
            progress(len(micro.rows))
        return torch.stack([read.get(name, torch.zeros(len(micro.rows))).to(reader.device) for name in _COLUMNS], 1)

    found = dict(zip(_COLUMNS, walk(reader, model, answers, of, len(_COLUMNS)).unbind(dim=1), strict=True))
    nearest = found["nearest"].long() if "refusal" in names else torch.full((len(answers),), -1)
    return {name: found[name] for name in names}, nearest


def _read_change(
    reader: ModelReader,
    answers: Sequence[TokenizedRow],
    probe: Probe,
    shape: Shape,
    progress: Callable[[int], None] | None,
) -> tuple[dict[tuple[str, bool], Tensor], Tensor]:
    """The readings of feature-shift, and distances.

    Both models see a batch before the next one comes, so that the states of no more than a batch are in memory.
    """
    layers = decoder_layers(reader.model)

    def of(micro: MicroBatch) -> Tensor:
        now = states_of(reader, reader.model, layers, micro)
        with reader.before_alignment() as model, evaluating(model):
            other = layers if model is reader.model else decoder_layers(model)
            before = states_of(reader, model, other, micro)
        if progress is not None:
            progress(2 * len(micro.rows))
        shifts = [probe.read(states)[0] for states in (now, before)]
        return torch.stack([*shifts, shape.distance(normalised(now) - normalised(before))], dim=1)

    after, before, distance = walk(reader, reader.model, answers, of, 3).unbind(dim=1)
    return {("shift", NOW): after, ("shift", BEFORE): before}, distance
