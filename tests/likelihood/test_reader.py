import pytest
import torch
from torch.testing import assert_close

from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.likelihood.microbatch import StepBatch
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.models.adapters import add_lora
from tests.tinylm import random_rows, step, tiny_llama


def test_sequence_nll_and_over_rows_agree_and_keep_the_order_of_the_rows():
    model, rows = tiny_llama(), random_rows(7)
    reader = ModelReader(model, rows={"user": rows}, batch_size=3)
    total, num_tokens = reader.sequence_nll(step(rows, 2))
    assert_close(reader.over_rows("user", lambda m: reader.completion_nll(m).row_total), total, atol=1e-5, rtol=1e-5)
    assert num_tokens.tolist() == [sum(e - s for s, e in row.spans) for row in rows]


def test_without_adapter_gives_the_base_models_likelihoods_and_changes_no_flag():
    rows = random_rows(4)
    expected, _ = ModelReader(tiny_llama()).sequence_nll(step(rows))
    model = add_lora(tiny_llama(), r=4, targets=["q_proj"], seed=0)
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    flags = [p.requires_grad for p in model.parameters()]
    reader = ModelReader(model)
    assert not torch.allclose(reader.sequence_nll(step(rows))[0], expected)
    with reader.without_adapter():
        assert_close(reader.sequence_nll(step(rows))[0], expected)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_before_alignment_is_the_model_given_or_the_adapter_switched_off_or_an_error():
    model, base = tiny_llama(), tiny_llama(seed=9)
    with ModelReader(model, base=base).before_alignment() as before:
        assert before is base
    adapted = add_lora(tiny_llama(), r=4, targets=["q_proj"], seed=0)
    with ModelReader(adapted).before_alignment() as before:
        assert before is adapted
    with pytest.raises(ModelError, match="no adapter"), ModelReader(model).before_alignment():
        pass


def test_refusals_that_nobody_gave_are_asked_for_by_their_setting():
    with pytest.raises(ConfigError, match="Give refusals"):
        _ = ModelReader(tiny_llama()).refusals


def test_a_reader_takes_no_step():
    assert not {"gradient", "step", "parameters", "learning_rate", "seed"} & set(dir(ModelReader(tiny_llama())))


def test_rows_of_one_rank_are_cut_into_passes_of_the_size_asked_for_and_keep_their_order():
    rows = random_rows(5)
    batch = StepBatch.of(rows, 2)
    assert [len(micro.rows) for micro in batch.micro_batches] == [2, 2, 1]
    assert [row.row_id for row, _ in batch.rows()] == [0, 1, 2, 3, 4]
    assert batch.num_rows == 5
    assert all(micro.counted == (True,) * len(micro.rows) for micro in batch.micro_batches)
