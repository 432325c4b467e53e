import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache

from antibody_llm.errors import TrainingError
from antibody_llm.likelihood.microbatch import MicroBatch
from antibody_llm.likelihood.shared_prompts import check_shared_prompts, read_prompts
from tests.likelihood.test_refusals import MODELS
from tests.tinylm import micro, plain_nll, random_refusals, random_rows, tiny_llama


def with_refusals(rows: list) -> MicroBatch:
    return micro([random_refusals().row(row, row.row_id) for row in rows])


def plain_loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    return sum(plain_nll(model, row.input_ids, *span) for row in batch.rows for span in row.spans)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_turns", [1, 2])
def test_likelihoods_and_gradients_on_shared_prompts_are_those_of_each_row_by_itself(name, num_turns):
    model = MODELS[name]()
    parameters, rows = list(model.parameters()), random_rows(6, num_turns=num_turns)
    batches = [with_refusals(rows), micro(rows)]
    prompts = read_prompts(model, batches, pad_id=0)
    for batch in batches:
        nll = prompts.completion_nll(model, batch, pad_id=0)
        for i, row in enumerate(batch.rows):
            for k, (start, end) in enumerate(row.spans):
                assert_close(nll.total[i, k], plain_nll(model, row.input_ids, start, end), atol=1e-5, rtol=1e-5)
                assert nll.num_tokens[i, k] == end - start
        ours = torch.autograd.grad(nll.total.sum(), parameters, retain_graph=True, materialize_grads=True)
        plain = torch.autograd.grad(plain_loss(model, batch), parameters, materialize_grads=True)
        off, norm = (torch.cat([g.flatten() for g in some]).norm() for some in ([*map(torch.sub, ours, plain)], plain))
        assert off < 1e-5 * norm


def test_a_prompt_is_computed_once_and_a_completion_s_gradient_passes_no_other_completion():
    model, rows = tiny_llama(), random_rows(4)
    read, gone_back = [], []
    mlp = model.model.layers[0].mlp

    def watch(module, args, output):
        read.append(output.shape[1])
        output.register_hook(lambda gradient, size=output.shape[1]: gone_back.append(size))

    mlp.register_forward_hook(watch)
    batches = [with_refusals(rows), micro(rows)]
    prompts = read_prompts(model, batches, pad_id=0)
    refusal, completion = (prompts.completion_nll(model, batch, pad_id=0) for batch in batches)
    longest = [max(row.spans[0][1] - row.spans[0][0] for row in batch.rows) for batch in batches]
    assert read == [max(row.spans[0][0] for row in rows) - 1, *longest]  # a completion without its last token, with x_P
    torch.autograd.grad(refusal.total.sum(), list(model.parameters()), retain_graph=True, materialize_grads=True)
    assert sorted(gone_back) == sorted([read[0], read[1]])
    gone_back.clear()
    torch.autograd.grad(completion.total.sum(), list(model.parameters()), materialize_grads=True)
    assert sorted(gone_back) == sorted([read[0], read[2]])


def test_a_cache_that_holds_no_graph_is_found_by_the_check_at_the_start(monkeypatch):
    model, rows = tiny_llama(), random_rows(4)
    batches = [with_refusals(rows), micro(rows)]
    check_shared_prompts(model, list(model.parameters()), batches, pad_id=0)
    update = DynamicCache.update
    monkeypatch.setattr(
        DynamicCache,
        "update",
        lambda self, k, v, *rest, **others: update(self, k.detach(), v.detach(), *rest, **others),
    )
    with pytest.raises(TrainingError, match=r"self-check: on prompts that are computed once .* are .* apart"):
        check_shared_prompts(model, list(model.parameters()), batches, pad_id=0)
