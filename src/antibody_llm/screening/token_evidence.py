"""Evidence per token of an answer that the answer is harmful there. High means harm.

    f_t   (g_l(t) - g0_l(t), g_l(t))                   g = h / rms(h), the state after token t; g0 of the base
    s_t   < mean of f over t - 1 .. t + 1 , v > - offset       0 at the harmless mean, 1 at the harmful one
    e_t   mean of s over t - ``RADIUS`` .. t + ``RADIUS``, within one answer
    E     max of e_t over all answers of the row

    v     Fisher's discriminant of harmful against harmless tokens of composed answers (composed.py), over at most
          ``MAX_LAYERS`` layers; the same is fitted without a quarter of the anchors to judge those (held out)
    Lam   log p(e | harm) - log p(e | harmless) of tokens, and of rows by their E; from the held-out values of composed
          answers to harmless prompts. A harmful prompt raises e of whatever follows it, and has evidence of its own

A token alone says little ("take", "and"); its neighbours on both sides say what it is part of. What tells novelty from
harm is that harmless answers which neither model expects are among what v is fitted to. The likelihood ratio
log pi_0(y_t|x,y_<t) - log pi_a(y_t|x,y_<t) tells less: of an answer that neither model expects it is the difference of
two large numbers, which is noise. Figures, also of states alone and of their change alone: docs/antibody-tokens.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data.collate import pad
from ..data.records import TokenizedRow
from ..errors import ModelError
from ..likelihood.completion import evaluating, takes_logits_to_keep
from ..likelihood.microbatch import MicroBatch
from ..likelihood.reader import ModelReader
from ..likelihood.tokens import TokenTable, read_tokens
from ..models.layout import context_length, decoder_layers
from ..primitives.discriminant import Moments, fisher
from ..primitives.mixture import LogRatio, log_density_ratio
from ..primitives.statistics import auroc
from ..primitives.taps import captured
from ..primitives.windows import smoothed
from .anchors import Anchors
from .composed import FOLDS, HARM, NEITHER, REST, ComposedRow, composed
from .probe import SHRINKAGE
from .states import normalised

RADIUS = 6
"""Tokens on either side that evidence is averaged over."""
FIT_RADIUS = 1
"""Tokens on either side in the means that the direction is fitted to."""
MAX_LAYERS = 4
MAX_WIDTH = 8192
"""Most numbers of a token's f: fewer layers are read of wider models, at least one."""


@dataclass(frozen=True, slots=True)
class TokenProbe:
    """The direction v and its offset: the score of a token is <f, direction> - offset."""

    direction: Tensor
    offset: float

    def scores(self, features: Tensor) -> Tensor:
        """[N], of features [N, D]."""
        return features @ self.direction.to(features) - self.offset


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What the anchors say about evidence of tokens.

    Attributes:
        probe: v.
        token: Lam of a token's e_t.
        row: Lam of a row's E, by itself: the same whatever else is uploaded.
        auroc: AUROC of e_t, held out: harmful tokens of composed answers against harmless ones.
        judges: E of the composed rows with harm and of those without, held out.
    """

    probe: TokenProbe
    token: LogRatio
    row: LogRatio
    auroc: float
    judges: tuple[Tensor, Tensor]


def read_token_rule(reader: ModelReader, anchors: Anchors) -> TokenRule:
    """Fit the direction to composed answers, and both log-ratios to evidence that is held out: two passes over them.

    Args:
        reader: The aligned model, the one before it, refusals.
        anchors: The labelled rows stored with the model.

    Raises:
        ModelError: there is no model before alignment, or too few anchors share a template.
    """
    answers = composed(anchors, reader.refusals, longest=context_length(reader.model))
    if len({answer.fold for answer in answers}) < FOLDS:
        raise ModelError(
            "the model has too few anchors of each label to learn what harmful answers look like. Add some: antibody "
            "anchors."
        )
    moments = _moments(reader, answers)
    probe = _probe(moments)
    probes = [_probe([part for other, part in enumerate(moments) if other != fold]) for fold in range(FOLDS)]
    del moments
    judged = [answer for answer in answers if not answer.asked_for_harm]
    held_out = [_held_out(reader, judged, fold, probes[fold]) for fold in range(FOLDS)]
    evidence = torch.cat([value for values, _ in held_out for value in values])
    labels = torch.tensor([label for _, members in held_out for answer in members for label in answer.labels])
    worst = torch.stack([value.max() for values, _ in held_out for value in values])
    harmful = torch.tensor([answer.harmful for _, members in held_out for answer in members])
    harm, rest = evidence[labels == HARM], evidence[labels == REST]
    judges = worst[harmful], worst[~harmful]
    return TokenRule(
        probe, log_density_ratio(harm, rest), log_density_ratio(*judges), auroc=auroc(rest, harm), judges=judges
    )


def read_token_evidence(reader: ModelReader, probe: TokenProbe, rows: Sequence[TokenizedRow]) -> TokenTable:
    """e_t of every trained token of some rows, from one forward of each model."""
    return read_tokens(reader, rows, lambda micro: _evidence(reader, probe, micro))


def row_evidence(tokens: TokenTable, rows: Sequence[TokenizedRow]) -> Tensor:
    """E of each row: [rows]."""
    return torch.stack([tokens.of(row).max() for row in rows]).cpu()


def _evidence(reader: ModelReader, probe: TokenProbe, micro: MicroBatch) -> Tensor:
    scores = probe.scores(_features(reader, micro))
    lengths = [end - start for row in micro.rows for start, end in row.spans]
    return torch.cat([smoothed(smoothed(part, FIT_RADIUS), RADIUS) for part in scores.split(lengths)])


def _features(reader: ModelReader, micro: MicroBatch) -> Tensor:
    """f of every trained token, row by row: [sum of N_i, D], float32."""
    now = _states(reader, reader.model, micro)
    with reader.before_alignment() as model, evaluating(model):
        before = _states(reader, model, micro)
    return torch.cat([now - before, now], dim=1)


def _states(reader: ModelReader, model: nn.Module, micro: MicroBatch) -> Tensor:
    """g at every trained token, all layers read side by side: [sum of N_i, layers x hidden]."""
    layers = decoder_layers(model)
    config: Any = model.config
    num = max(1, min(MAX_LAYERS, len(layers), MAX_WIDTH // (2 * config.get_text_config().hidden_size)))
    chosen = [layers[(2 * i + 1) * len(layers) // (2 * num)] for i in range(num)]
    tensors = pad(micro.rows, reader.pad_id, device=next(model.parameters()).device)
    extra = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
    with captured(chosen) as states, reader.autocast():
        model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False, **extra)
        trained = tensors["turns"] >= 0
        return torch.cat([normalised(state[trained].float()) for state in states], dim=1)


@torch.no_grad()
def _moments(reader: ModelReader, answers: Sequence[ComposedRow]) -> list[Moments]:
    """Moments of the means of f, of each fold."""
    found: dict[int, Moments] = {}
    with evaluating(reader.model):
        for fold in range(FOLDS):
            # By length: an answer within an answer is several times as long as a refusal, which would be padded to it.
            members = sorted((a for a in answers if a.fold == fold), key=lambda answer: len(answer.row.input_ids))
            for begin in range(0, len(members), reader.batch_size):
                some = members[begin : begin + reader.batch_size]
                features = _features(reader, MicroBatch.of([answer.row for answer in some]))
                lengths = [len(answer.labels) for answer in some]
                means = torch.cat([smoothed(part, FIT_RADIUS) for part in features.split(lengths)])
                labels = torch.tensor([label for answer in some for label in answer.labels], device=means.device)
                counted = labels != NEITHER
                if fold in found:
                    found[fold].add(means[counted], labels[counted])
                else:
                    found[fold] = Moments.of(means[counted], labels[counted])
    return [found[fold] for fold in range(FOLDS)]


def _probe(moments: Sequence[Moments]) -> TokenProbe:
    direction, offset = fisher(moments, shrinkage=SHRINKAGE)
    return TokenProbe(direction.float(), offset)


def _held_out(
    reader: ModelReader, answers: Sequence[ComposedRow], fold: int, probe: TokenProbe
) -> tuple[list[Tensor], list[ComposedRow]]:
    """e_t of each of the fold's answers by a probe that was fitted without its anchors, and these answers."""
    members = [answer for answer in answers if answer.fold == fold]
    found = read_tokens(reader, [answer.row for answer in members], partial(_evidence, reader, probe))
    return [found.of(answer.row).cpu() for answer in members], members
