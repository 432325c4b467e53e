import torch
from torch.testing import assert_close

from antibody_llm.likelihood.frozen import FrozenPredictions, read_predictions
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.likelihood.tokens import TokenTable, num_trained
from tests.defences.plain import token_logits
from tests.tinylm import micro, random_rows, tiny_llama

ROWS = random_rows(6, seed=1, num_turns=2)


def wanted():
    """A table that wants every third token, and none of the second row's."""
    bounds, end = {}, 0
    for row in ROWS:
        bounds[row.row_id] = (end, end := end + num_trained(row))
    values = (torch.arange(end) % 3 == 0).float()
    values[slice(*bounds[1])] = 0.0
    return TokenTable(values, bounds)


def test_the_likeliest_tokens_are_kept_where_they_are_wanted_and_nowhere_else():
    model, table = tiny_llama(), wanted()
    found = read_predictions(ModelReader(model, batch_size=4), ROWS, table, 5)
    assert len(found.tokens) == int(table.values.sum())
    for some in (ROWS[:3], [ROWS[5], ROWS[1], ROWS[2]]):
        logits = torch.cat([token_logits(model, row)[table.of(row) > 0] for row in some]).detach()
        tokens, log_p = found.of(table, micro(some))
        assert_close(tokens, logits.topk(5, dim=1).indices)
        p = logits.softmax(dim=1).gather(1, tokens)
        assert_close(log_p.exp(), torch.cat([p, 1 - p.sum(dim=1, keepdim=True)], dim=1), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_holds_them():
    found = read_predictions(ModelReader(tiny_llama()), ROWS, wanted(), 3)
    again = FrozenPredictions.from_state(found.state())
    assert torch.equal(again.tokens, found.tokens)
    assert torch.equal(again.log_p, found.log_p)
    assert torch.equal(again.place, found.place)
    assert len(FrozenPredictions.from_state({}).tokens) == 0
