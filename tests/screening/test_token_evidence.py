import pytest
import torch
from tests.tinylm import random_refusals, random_rows, tiny_llama
from tests.training.helpers import anchor_rows
from torch.testing import assert_close

from antibody_llm.data.records import TokenizedRow
from antibody_llm.errors import ModelError
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.primitives.statistics import auroc
from antibody_llm.screening.anchors import make_anchors
from antibody_llm.screening.token_evidence import (
    FIT_RADIUS,
    RADIUS,
    TokenProbe,
    read_token_evidence,
    read_token_rule,
    row_evidence,
)

MODEL, BEFORE = tiny_llama(seed=0), tiny_llama(seed=9)


def reader(**settings):
    return ModelReader(MODEL, refusals=random_refusals(), base=BEFORE, batch_size=4, **settings)


def spoken(rows, low, high):
    """The rows with every word of their answers between two tokens."""
    found = []
    for row in rows:
        start, end = row.spans[0]
        ids = [low + token % (high - low) if start <= t < end - 1 else token for t, token in enumerate(row.input_ids)]
        found.append(TokenizedRow(row.row_id, tuple(ids), row.spans, row.template))
    return found


def anchors_of(harmful=(40, 50), harmless=(10, 20)):
    bad, good = anchor_rows()
    return make_anchors(reader(), spoken(bad, *harmful), spoken(good, *harmless))


def layer_outputs(model, row):
    outputs = []
    handles = [layer.register_forward_hook(lambda m, a, out: outputs.append(out)) for layer in model.model.layers]
    model(input_ids=torch.tensor([row.input_ids]))
    for handle in handles:
        handle.remove()
    return [(out[0] if isinstance(out, tuple) else out).detach().reshape(len(row.input_ids), -1) for out in outputs]


def mean_around(values, radius):
    return [
        sum(values[max(0, t - radius) : t + radius + 1]) / len(values[max(0, t - radius) : t + radius + 1])
        for t in range(len(values))
    ]


def test_evidence_of_a_token_is_the_equation_token_by_token():
    rows = random_rows(5, seed=1, num_turns=2)
    generator = torch.Generator().manual_seed(3)
    probe = TokenProbe(torch.randn(2 * 2 * 32, generator=generator), 0.25)
    found = read_token_evidence(reader(), probe, rows)
    for row in rows:
        unit = [
            [h / (h.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() for h in layer_outputs(m, row)]
            for m in (MODEL, BEFORE)
        ]
        now, before = (torch.cat(states, dim=1) for states in unit)
        score = (torch.cat([now - before, now], dim=1) @ probe.direction - 0.25).tolist()
        expected = []
        for start, end in row.spans:  # an answer is not averaged with its neighbour
            expected += mean_around(mean_around(score[start:end], FIT_RADIUS), RADIUS)
        assert_close(found.of(row), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert_close(row_evidence(found, rows), torch.stack([found.of(row).max() for row in rows]))


def test_answers_of_other_words_are_told_apart_and_answers_of_the_same_words_are_not():
    apart = read_token_rule(reader(), anchors_of())
    assert apart.auroc > 0.75
    assert float(apart.token.slope) > 0
    assert float(apart.row.slope) > 0
    alike = read_token_rule(reader(), anchors_of(harmful=(10, 20)))
    assert alike.auroc < apart.auroc - 0.1


def test_a_harmful_answer_reads_as_harm_under_a_harmless_prompt():
    rule = read_token_rule(reader(), anchors_of())
    hidden, honest = (spoken(random_rows(12, seed=8, longest=9), *words) for words in ((40, 50), (10, 20)))
    evidence = [row_evidence(read_token_evidence(reader(), rule.probe, rows), rows) for rows in (hidden, honest)]
    assert auroc(evidence[1], evidence[0]) > 0.9


def test_too_few_different_answers_are_refused():
    bad, good = anchor_rows()
    same = [
        TokenizedRow(r.row_id, (*r.input_ids[: r.spans[0][0]], 7, 2), ((r.spans[0][0], r.spans[0][0] + 2),), r.template)
        for r in bad
    ]
    anchors = make_anchors(reader(), same, good)
    with pytest.raises(ModelError, match="too few anchors of each label"):
        read_token_rule(reader(), anchors)
