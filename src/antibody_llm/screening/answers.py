"""What a screening reads of answers, a chunk of rows at a time: evidence of each row, and the spans that read as harm.

A span is a run of tokens of one answer whose e_t makes harm likelier than not (token_evidence.py), where the row's E
does too. It is given in characters of that answer's text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.encode import Renderer
from ..data.records import TokenizedRow
from ..errors import ModelError
from ..likelihood.reader import ModelReader
from .anchors import MIN_AUROC, Anchors
from .cache import EvidenceCache, cache_folder, digest_of, row_digest
from .stored_rule import stored_token_rule
from .token_evidence import read_token_evidence

Span = tuple[int, int, int]
"""Which of the row's trained answers, 0-based; its first character, and the first one behind."""


@dataclass(frozen=True, slots=True)
class AnswerFound:
    """What was read of a row's answers.

    Attributes:
        evidence: E, the highest of their tokens. High means harm.
        spans: What reads as harm.
    """

    evidence: float
    spans: tuple[Span, ...] = ()


class AnswerReader:
    """Reads answers with a model, and remembers the rows that have no span.

    Args:
        models: The aligned model, the one before it, refusals.
        renderer: The one that made the rows.
        anchors: The labelled rows stored with the model.
        identity: Identity of the models, the refusals and the anchors.

    Raises:
        ModelError: the anchors' harmful and harmless answers read alike.
    """

    def __init__(self, models: ModelReader, renderer: Renderer, anchors: Anchors, identity: bytes) -> None:
        self.models, self.renderer = models, renderer
        self.rule = stored_token_rule(models, anchors)
        if self.rule.auroc < MIN_AUROC:
            raise ModelError(
                f"the anchors' harmful and harmless answers read alike to this model (AUROC {self.rule.auroc:.3f}, at "
                f"least {MIN_AUROC:.3f} needed), so that answers cannot be judged. Screen prompts alone."
            )
        self.cache = EvidenceCache(cache_folder(), digest_of([b"answers 1", identity]))

    def read(self, rows: Sequence[TokenizedRow], advance: Callable[[float], None]) -> list[AnswerFound]:
        """Evidence and spans of distinct rows.

        Args:
            rows: The rows; no two read the same.
            advance: Called with 1 once they are read.
        """
        keys = [row_digest(row) for row in rows]
        known = {key: AnswerFound(evidence) for key, (evidence, _, _) in self.cache.read(keys).items()}
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        fresh: dict[bytes, AnswerFound] = {}
        if new:
            numbered = [TokenizedRow(i, r.input_ids, r.spans, r.template) for i, r in enumerate(new.values())]
            table = read_token_evidence(self.models, self.rule.probe, numbered)
            fresh = {key: self._found(row, table.of(row).cpu()) for key, row in zip(new, numbered, strict=True)}
            self.cache.write({key: (of.evidence, -1, None) for key, of in fresh.items() if not of.spans})
        advance(1.0)
        return [known[key] if key in known else fresh[key] for key in keys]

    def _found(self, row: TokenizedRow, evidence: Tensor) -> AnswerFound:
        worst = evidence.max()
        if not float(self.rule.row(worst[None])) > 0:
            return AnswerFound(float(worst))
        harm = self.rule.token(evidence) > 0
        spans, place = [], 0
        for turn, (start, end) in enumerate(row.spans):
            spans += [
                (turn, *span) for span in self._characters(row.input_ids[start:end], harm[place : place + end - start])
            ]
            place += end - start
        return AnswerFound(float(worst), tuple(spans))

    def _characters(self, ids: Sequence[int], harm: Tensor) -> list[tuple[int, int]]:
        """Runs of harmful tokens of one answer, in characters; the token that ends the turn has none."""
        edges = torch.diff(harm.int(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()[:, 0].tolist()
        ends = [len(self._text(ids[:number])) for number in edges]
        return [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if b > a]

    def _text(self, ids: Sequence[int]) -> str:
        return str(
            self.renderer.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
