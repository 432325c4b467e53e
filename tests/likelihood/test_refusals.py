import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPTNeoXConfig, MistralConfig, Qwen2Config

from antibody_llm.errors import ConfigError, TrainingError
from antibody_llm.likelihood.completion import check_completion_nll, completion_nll
from antibody_llm.likelihood.refusals import (
    Scoring,
    check_scoring,
    completion_and_refusal_nll,
    plain_causal_attention,
    usable_scoring,
)
from tests.tinylm import VOCAB, micro, plain_nll, random_refusals, random_rows, tiny_llama

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def other(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


MODELS = {
    "llama": tiny_llama,
    "llama-eager": lambda: tiny_llama(attn_implementation="eager"),
    "qwen2": lambda: other(Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=False)),
    "mistral": lambda: other(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None)),
    "gpt-neox": lambda: other(GPTNeoXConfig(**SMALL)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_turns", [1, 3])
def test_refusal_and_completion_cost_what_two_plain_forwards_of_each_row_say(name, num_turns):
    model = MODELS[name]()
    rows, refusals = random_rows(6, num_turns=num_turns), random_refusals()
    for scoring in (Scoring.CACHED, Scoring.SEPARATE):
        completion, refusal = completion_and_refusal_nll(model, micro(rows), refusals, pad_id=0, scoring=scoring)
        for i, row in enumerate(rows):
            for k, (start, end) in enumerate(row.spans):
                assert_close(completion.total[i, k], plain_nll(model, row.input_ids, start, end), atol=1e-5, rtol=1e-5)
                r = refusals.of(row, row.row_id)
                expected = plain_nll(model, (*row.input_ids[:start], *r), start, start + len(r))
                assert_close(refusal.total[i, k], expected, atol=1e-5, rtol=1e-5)
                assert refusal.num_tokens[i, k] == len(r)


def test_the_gradient_of_the_completion_is_untouched_by_the_refusal_riding_along():
    model, rows = tiny_llama(), random_rows(5)
    alone = torch.autograd.grad(completion_nll(model, micro(rows), pad_id=0).total.sum(), list(model.parameters()))
    both, _ = completion_and_refusal_nll(model, micro(rows), random_refusals(), pad_id=0, scoring=Scoring.CACHED)
    beside = torch.autograd.grad(both.total.sum(), list(model.parameters()))
    assert_close(beside, alone, atol=1e-6, rtol=1e-5)


def test_logits_at_the_completions_alone_give_the_likelihoods_of_the_plain_forward():
    model, rows = tiny_llama(), random_rows(6, num_turns=2)
    kept = completion_nll(model, micro(rows), pad_id=0)
    plain = completion_nll(model, micro(rows), pad_id=0, plain=True)
    assert_close(kept.total, plain.total, atol=1e-5, rtol=1e-5)
    assert torch.equal(kept.num_tokens, plain.num_tokens)
    check_completion_nll(model, micro(rows), pad_id=0)


def test_a_forward_that_takes_logits_to_keep_for_something_else_stops_the_run_with_both_numbers(monkeypatch):
    model, rows = tiny_llama(), random_rows(6)
    real = type(model).forward

    def from_the_end(self, *args, logits_to_keep=0, **kwargs):
        keep = logits_to_keep - 1 if isinstance(logits_to_keep, torch.Tensor) else logits_to_keep
        return real(self, *args, logits_to_keep=keep, **kwargs)

    monkeypatch.setattr(type(model), "forward", from_the_end)
    with pytest.raises(TrainingError, match=r"costs \d+\.\d+ nats per token, with all of them \d+\.\d+.*to_keep"):
        check_completion_nll(model, micro(rows), pad_id=0)


def test_a_sliding_window_is_scored_separately_and_refused_by_name():
    model = other(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4))
    assert not plain_causal_attention(model)
    assert usable_scoring(model, Scoring.AUTO) is Scoring.SEPARATE
    with pytest.raises(ConfigError, match="scoring.*separate"):
        usable_scoring(model, Scoring.CACHED)


def test_a_window_that_the_configuration_hides_is_caught_by_the_self_check_with_both_numbers():
    model = other(MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4))
    rows = random_rows(6, longest=20)
    with pytest.raises(TrainingError, match=r"costs \d+\.\d+ nats per token, in a separate forward \d+\.\d+"):
        check_scoring(model, micro(rows), random_refusals(), pad_id=0, scoring=Scoring.CACHED)


def test_gradient_checkpointing_is_scored_separately():
    model = tiny_llama()
    model.gradient_checkpointing_enable()
    assert usable_scoring(model, Scoring.AUTO) is Scoring.SEPARATE


def test_a_refusal_row_keeps_the_prompt_of_the_turn_and_drops_what_follows():
    row, refusals = random_rows(1, num_turns=3)[0], random_refusals()
    start, _ = row.spans[1]
    replaced = refusals.row(row, 2, turn=1)
    assert replaced.input_ids == (*row.input_ids[:start], *refusals.ids[row.template][2])
    assert replaced.spans == ((start, len(replaced.input_ids)),)
