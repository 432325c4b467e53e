import torch
from torch.testing import assert_close

from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.likelihood.tokens import TokenTable, read_tokens
from tests.defences.plain import token_log_probs
from tests.tinylm import micro, random_rows, tiny_llama

ROWS = random_rows(7, seed=3, num_turns=2)


def table(batch_size=3):
    return read_tokens(ModelReader(tiny_llama(), batch_size=batch_size), ROWS)


def test_every_trained_token_has_its_own_nll_in_the_order_of_the_rows_spans():
    model, found = tiny_llama(), table()
    for row in ROWS:
        assert_close(found.of(row), -token_log_probs(model, row).detach(), atol=1e-5, rtol=1e-5)


def test_laid_over_a_micro_batch_the_numbers_are_where_its_tokens_are():
    reader, found = ModelReader(tiny_llama()), table()
    some = micro([ROWS[5], ROWS[1]])
    here = reader.completion_logits(some)
    assert_close(found.over(some, here.trained), here.nll.detach(), atol=1e-5, rtol=1e-5)


def test_a_stored_table_is_read_back_as_it_was_and_none_is_an_empty_one():
    found = table()
    again = TokenTable.from_state(found.state("t"), "t")
    assert all(torch.equal(again.of(row), found.of(row)) for row in ROWS)
    assert TokenTable.from_state({}, "t").bounds == {}


def test_a_model_that_trains_is_read_without_dropout_and_trains_on():
    model = tiny_llama(attention_dropout=0.5).train()
    first, second = (read_tokens(ModelReader(model), ROWS).values for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
