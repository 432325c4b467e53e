"""How an upload's rows are read: the models, the measure, the anchors, and what was read before."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..data.encode import Renderer
from ..data.records import Record, Template, TokenizedRow
from ..errors import DataError, ModelError
from ..likelihood.reader import ModelReader
from ..mentions import setting
from ..models.loading import LoadedModel
from .anchors import Anchors, checked_anchors
from .answers import AnswerReader
from .cache import EvidenceCache, Found, cache_folder, digest_of, row_digest, weights_identity
from .evidence import EvidenceKind
from .familiarity import read_familiarity
from .reading import collect
from .upload import Upload

NUM_REFUSALS = 4
"""k, the refusals that a row is scored against where the model has no anchors; else the anchors' own k. Which ones
follows from the row's content, so that equal rows read alike."""

NO_BASE = (
    "the model before alignment is not known, so rows are judged by 'ratio', their likelihood against a refusal's, "
    "alone. It cannot tell a prompt that the model wants to refuse from one that it has no answer to: on a task that "
    "is new to the model benign rows look harmful and harmful ones are favoured. Name the model before alignment: "
    f"{setting('base')}."
)
ANSWERS = (
    "this evidence also reads a row's own answer, which the model may know much better or worse than it knows those of "
    "the anchors: the share and the probabilities can be far off (lab, 20 % harmful: 8 % by ratio, 5 % by gap). The "
    f"ranking suffers less. Leave {setting('evidence')} out, and name {setting('base')} where it is not known."
)
NO_ANCHORS = (
    "the model carries no anchors, which show what harmful and benign rows look like to it: no share, no probability "
    f"and no verdict, rows are only ranked. Align it with {setting('anchor_harmful_data')} and "
    f"{setting('anchor_benign_data')} to have them."
)
OTHER_TEMPLATE = (
    "the model's anchors are rendered by {anchors} template, the upload by {upload}: harm reads weaker or stronger in "
    "the one than in the other, so that there is no share, no probability and no verdict, rows are only ranked. Give "
    "the upload in the format of the anchors, for a chat model as messages."
)


class EvidenceReader:
    """One way of reading evidence, and the cache of what it read before.

    Args:
        loaded: The aligned model by name, with that of the model before alignment where it is known.
        models: That model and the one before it, with refusals of each template of the upload and the anchors.
        renderer: Makes tokens of a row.
        measure: The kind of evidence; see ``chosen_measure``.
        anchors: Those stored with the model; None where it has none.
        template: The template of the upload's rows.
        answers: Whether answers are read, too, token by token.

    Raises:
        ModelError: the measure cannot tell the anchors apart, or the base is the model; or answers are to be read, and
            there are no anchors, no base, or none of the upload's template.
        TrainingError: the anchors do not read as they did when the model was aligned.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        models: ModelReader,
        renderer: Renderer,
        *,
        measure: EvidenceKind,
        anchors: Anchors | None,
        template: Template,
        answers: bool = False,
    ) -> None:
        self.models, self.renderer, self.measure = models, renderer, measure
        self.anchors, self.template = anchors, template
        self.base = loaded.base if measure.needs_base else None
        self._base_is_known = loaded.base is not None
        self.num_refusals = anchors.num_refusals if anchors else NUM_REFUSALS
        identities = self._weights()
        if identities[0] == identities[1]:
            raise ModelError(
                f"{self.base}: holds the very weights of {loaded.name}, so that there is no alignment to be read "
                f"between the two. {setting('base')} must be the model as it was before its alignment."
            )
        if anchors is not None:
            self.anchors = checked_anchors(models, anchors, measure)
        self.ratio = None if self.anchors is None else self.anchors.log_ratio(measure)
        far_is_known = anchors is not None and measure is EvidenceKind.FEATURE_SHIFT
        self.familiarity = read_familiarity(models, cast(Anchors, anchors)) if far_is_known else None
        identity = self._identity(identities)
        self.cache = EvidenceCache(cache_folder(), identity)
        self.answers = self._answers(identity) if answers else None

    def _answers(self, identity: bytes) -> AnswerReader:
        if self.anchors is None or self.judges is None or self.measure is not EvidenceKind.FEATURE_SHIFT:
            raise ModelError(
                f"{setting('answers')} needs a model with anchors of the upload's template and the model before its "
                f"alignment, and the evidence {EvidenceKind.FEATURE_SHIFT}. Name {setting('base')}, add anchors "
                f"(antibody anchors), or leave {setting('answers')} out."
            )
        return AnswerReader(self.models, self.renderer, self.anchors, identity)

    @property
    def texts(self) -> tuple[str, ...]:
        """The refusals, by number."""
        return self.models.refusals.texts

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of what the numbers cannot say."""
        no_base = self.measure is EvidenceKind.RATIO and not self._base_is_known
        holds = {NO_BASE: no_base, NO_ANCHORS: self.anchors is None}
        if self.anchors is not None and self.judges is None:
            holds[OTHER_TEMPLATE.format(anchors="the chat", upload="none")] = self.template is Template.TEXT
            holds[OTHER_TEMPLATE.format(anchors="no", upload="the chat one")] = self.template is Template.CHAT
        holds[ANSWERS] = self.judges is not None and self.measure.needs_answers
        return tuple(text for text, true in holds.items() if true)

    @property
    def judges(self) -> tuple[Tensor, Tensor] | None:
        """Evidence of the harmful and the benign anchors; None where they cannot judge this upload.

        Alignment to chats changes how a bare text is read far less: the lab's harmful rows without the chat template
        lie near the benign anchors, and would be found harmless.
        """
        if self.anchors is None or self.template not in {row.template for row in self.anchors.rows}:
            return None
        return self.anchors.scores(self.measure)

    def encoded(self, record: Record) -> TokenizedRow | None:
        """The row as tokens; None where it is too long, a refusal in place of its answer included if that is read."""
        row = self.renderer.encode(record)
        fits = len(row.input_ids) <= self.renderer.max_length
        return row if fits and (self.measure.needs_probe or self._has_room(row)) else None

    def _has_room(self, row: TokenizedRow) -> bool:
        """Whether any refusal fits in place of any of the row's answers."""
        refusal = max(map(len, self.models.refusals.ids[row.template]))
        return max(start for start, _ in row.spans) + refusal <= self.renderer.max_length

    def read(self, rows: Sequence[TokenizedRow], where: Sequence[str], advance: Callable[[float], None]) -> list[Found]:
        """Evidence of distinct rows, from the cache where they were read before.

        Args:
            rows: The rows; no two read the same.
            where: What errors call each.
            advance: Called with the share of the new rows that has been read, 0 to 1.

        Raises:
            TrainingError: what was read of a row is not finite.
        """
        keys = [row_digest(row) for row in rows]
        known = self.cache.read(keys)
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        if new:
            # A row's refusals follow from its content, not from its place.
            chosen = [dataclasses.replace(row, row_id=int.from_bytes(key[:4])) for key, row in new.items()]
            places = {int.from_bytes(key[:4]): place for key, place in zip(keys, where, strict=True)}
            fresh = dict(zip(new, self._read_new(chosen, places, advance), strict=True))
            self.cache.write(fresh)
            known |= fresh
        return [known[key] for key in keys]

    def unfamiliar(self, found: Sequence[Found]) -> list[bool]:
        """Whether each row is unlike every anchor; False where that is not known."""
        if self.familiarity is None or self.judges is None or not found:
            return [False] * len(found)
        evidence, distance = (torch.tensor([cast(float, row[i]) for row in found]) for i in (0, 2))
        return self.familiarity.unfamiliar(evidence, distance).tolist()

    def relative(self, distance: float | None) -> float | None:
        """The distance in units of the one that 3 harmful anchors in 100 exceed."""
        return None if self.familiarity is None or distance is None else distance / self.familiarity.near

    def _read_new(
        self, rows: Sequence[TokenizedRow], places: Mapping[int, str], advance: Callable[[float], None]
    ) -> list[Found]:
        total = sum(len(row.spans) for row in rows) * (2 if self.measure.needs_base else 1)
        seen = 0

        def progress(num: int) -> None:
            nonlocal seen
            seen += num
            advance(seen / total)

        def name(row: TokenizedRow) -> str:
            return places[row.row_id]

        found = collect(
            self.models,
            rows,
            [self.measure],
            probe=self.anchors.probe if self.anchors else None,
            num_refusals=self.num_refusals,
            progress=progress,
            name=name,
            shape=self.familiarity.shape if self.familiarity else None,
        )
        evidence, nearest = found.of(self.measure), found.nearest_refusal()
        distance = found.distances().tolist() if self.familiarity else [None] * len(rows)
        if self.ratio is not None and self.measure.needs_probe:
            # This measure reads no refusals: seek the nearest where a row leans towards harm, which is rarely all, and
            # has room for one.
            room = torch.tensor([self._has_room(row) for row in rows])
            leans = ((self.ratio(evidence) > 0) & room).nonzero()[:, 0]
            if len(leans):
                some = [rows[i] for i in leans.tolist()]
                refused = collect(self.models, some, [EvidenceKind.RATIO], num_refusals=self.num_refusals, name=name)
                nearest[leans] = refused.nearest_refusal()
        return list(zip(evidence.tolist(), nearest.tolist(), distance, strict=True))

    def _weights(self) -> tuple[bytes, bytes]:
        """Identities of the model and of the one before its alignment."""
        aligned, before = weights_identity(self.models.model), b"adapter off"  # also where none is compared with
        if self.measure.needs_base:
            with self.models.before_alignment() as model:
                if model is not self.models.model:
                    before = weights_identity(model)
        return aligned, before

    def _identity(self, weights: tuple[bytes, bytes]) -> bytes:
        # "1" may hold evidence that is not finite, "2" has no distances.
        parts: list[str | bytes] = ["3", self.measure, str(self.num_refusals), *self.texts, *weights]
        parts.append(repr(sorted((str(kind), ids) for kind, ids in self.models.refusals.ids.items())))
        if self.anchors is not None and self.ratio is not None:
            probe = self.anchors.probe
            parts += [probe.shift.numpy().tobytes(), probe.state.numpy().tobytes()]
            parts += [row_digest(row) for row in self.anchors.rows]  # the distances are from them
            parts.append(f"{probe.offset!r} {self.ratio.slope.tolist()!r} {self.ratio.bias!r}")
        return digest_of(parts)


def chosen_measure(wanted: EvidenceKind | None, loaded: LoadedModel, anchors: Anchors | None) -> EvidenceKind:
    """The measure that is asked for, or the best that this model allows.

    Raises:
        ModelError: the one asked for needs a base or anchors, and the model has none.
    """
    if wanted is None:
        if loaded.base is None:
            return EvidenceKind.RATIO
        return EvidenceKind.SHIFT if anchors is None else EvidenceKind.FEATURE_SHIFT
    asked = setting("evidence", wanted)
    if wanted.needs_base and loaded.base is None:
        raise ModelError(
            f"{loaded.name} does not say which model it was before its alignment, and {asked} compares the two. Name "
            f"it with {setting('base')}, or leave {setting('evidence')} out to be judged by 'ratio'."
        )
    if wanted.needs_probe and anchors is None:
        raise ModelError(
            f"{loaded.adapter or loaded.name} carries no anchors, and {asked} is read along what tells them apart. "
            f"Align it with {setting('anchor_harmful_data')} and {setting('anchor_benign_data')}, or leave "
            f"{setting('evidence')} out."
        )
    return wanted


def template_of(upload: Upload) -> Template:
    """The template of an upload's rows.

    Raises:
        DataError: every row is empty.
    """
    first = next((row.record for row in upload if row.record is not None), None)
    if first is None:
        raise DataError(f"{upload.name}: every row is empty. Give rows with a prompt and a completion.")
    return first.template
