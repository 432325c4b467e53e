import math

import pytest
import torch
from torch.testing import assert_close

from antibody_llm.errors import ConfigError, EvaluationError, ModelError
from antibody_llm.evaluation.decoding import DecodingSettings
from antibody_llm.evaluation.generation import GumbelNoise, generate, left_padded
from antibody_llm.events import Progress, listening


def by_hand(model, tokenizer, prompt, max_new_tokens):
    """Greedy, one prompt, no padding, no cache, no generate()."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_padding_puts_the_last_token_of_every_prompt_last():
    input_ids, mask = left_padded([[7], [4, 5, 6]], pad_id=0)
    assert input_ids.tolist() == [[0, 0, 7], [4, 5, 6]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_greedy_text_is_that_of_a_plain_loop_without_padding_in_the_order_asked(
    tiny_lm, tiny_tokenizer, prompts, batch_size
):
    texts = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=batch_size)
    assert texts == [by_hand(tiny_lm, tiny_tokenizer, prompt, 12) for prompt in prompts]
    assert len(set(texts)) == len(prompts)  # otherwise a wrong order would go unseen


def test_a_draw_is_the_same_whatever_the_batch_size_and_differs_by_seed(tiny_lm, tiny_tokenizer, prompts):
    def draw(batch_size, seed):
        return generate(
            tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=batch_size, temperature=1.0, seed=seed
        )

    assert draw(1, 0) == draw(7, 0)
    assert draw(7, 0) != draw(7, 1)


def test_drawing_leaves_the_random_state_of_the_process_alone(tiny_lm, tiny_tokenizer, prompts):
    before = torch.random.get_rng_state()
    generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=4, temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gumbel_noise_draws_from_the_softmax_at_that_temperature():
    # softmax(log(1, 4) / 0.5) = (1, 16) / 17
    noise = GumbelNoise(range(20_000), temperature=0.5, seed=3)
    scores = torch.tensor([[0.0, math.log(4.0)]]).expand(20_000, 2)
    share = noise(torch.empty(0), scores).argmax(-1).float().mean().item()
    assert share == pytest.approx(16 / 17, abs=4 * math.sqrt(16 / 17 / 17 / 20_000))


def test_the_models_own_generation_config_does_not_change_greedy_text(tiny_lm, tiny_tokenizer, prompts):
    plain = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=4)
    tiny_lm.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=3.0, top_k=3, max_length=9)
    assert generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=4) == plain


@pytest.mark.parametrize("entry", [{"output_hidden_states": {"a": 1}}, {"return_dict_in_generate": True}])
def test_what_a_generation_config_says_of_outputs_does_not_reach_the_decoding(tiny_lm, tiny_tokenizer, prompts, entry):
    plain = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=4)
    tiny_lm.generation_config.update(**entry)
    assert generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=4) == plain


def test_a_completion_ends_before_the_first_end_token_of_model_or_tokenizer(tiny_lm, tiny_tokenizer, prompts):
    free = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=4)
    third = free[0].split()[2]
    tiny_lm.generation_config.eos_token_id = [1, tiny_tokenizer.convert_tokens_to_ids(third)]
    ended = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=12, batch_size=4)
    words = free[0].split()
    assert ended[0] == " ".join(words[: words.index(third)])


def test_train_and_eval_mode_of_each_module_and_use_cache_are_put_back(tiny_lm, tiny_tokenizer, prompts):
    tiny_lm.train()
    tiny_lm.model.layers[0].eval()
    tiny_lm.config.use_cache = False
    before = [module.training for module in tiny_lm.modules()]
    generate(tiny_lm, tiny_tokenizer, prompts[:2], max_new_tokens=2, batch_size=2)
    assert [module.training for module in tiny_lm.modules()] == before
    assert tiny_lm.config.use_cache is False


def test_mode_is_put_back_when_generation_fails(tiny_lm, tiny_tokenizer):
    tiny_lm.train()
    with pytest.raises(IndexError):
        generate(tiny_lm, tiny_tokenizer, [[10_000]], max_new_tokens=2, batch_size=2)
    assert all(module.training for module in tiny_lm.modules())


def test_gradient_checkpointing_changes_no_text(tiny_lm, tiny_tokenizer, prompts):
    plain = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=6, batch_size=4)
    tiny_lm.gradient_checkpointing_enable()
    tiny_lm.train()
    assert generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=6, batch_size=4) == plain


def test_a_peft_model_answers_with_its_adapter(tiny_lm, tiny_tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    base = generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=6, batch_size=4)
    model = get_peft_model(tiny_lm, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    adapted = generate(model, tiny_tokenizer, prompts, max_new_tokens=6, batch_size=4)
    assert adapted == [by_hand(model, tiny_tokenizer, prompt, 6) for prompt in prompts]
    assert adapted != base


def test_training_goes_on_after_a_generation(tiny_lm, tiny_tokenizer, prompts):
    ids = torch.tensor([prompts[0]])
    tiny_lm(input_ids=ids, labels=ids).loss.backward()
    expected = [parameter.grad.clone() for parameter in tiny_lm.parameters()]
    tiny_lm.zero_grad()
    generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=4, batch_size=4)
    tiny_lm(input_ids=ids, labels=ids).loss.backward()
    assert_close([parameter.grad for parameter in tiny_lm.parameters()], expected, rtol=0, atol=0)


def test_progress_is_reported_before_the_first_batch_and_after_each(tiny_lm, tiny_tokenizer, prompts):
    heard, num = [], len(prompts)
    with listening(heard.append):
        generate(tiny_lm, tiny_tokenizer, prompts, max_new_tokens=2, batch_size=4, label="test")
        generate(tiny_lm, tiny_tokenizer, [], max_new_tokens=2, batch_size=4)
    assert heard == [Progress(what="test", done=done, total=num) for done in (*range(0, num, 4), num)]


def test_no_prompts_give_no_texts(tiny_lm, tiny_tokenizer):
    assert generate(tiny_lm, tiny_tokenizer, [], max_new_tokens=2, batch_size=4) == []


def test_a_prompt_without_tokens_is_named(tiny_lm, tiny_tokenizer):
    with pytest.raises(EvaluationError, match=r"1 of 2 prompts have no tokens \(first: prompt 1, counted from 0"):
        generate(tiny_lm, tiny_tokenizer, [[4], []], max_new_tokens=2, batch_size=4)


def test_a_prompt_that_does_not_fit_the_context_is_named(tiny_lm, tiny_tokenizer):
    with pytest.raises(EvaluationError, match=r"context of 96 tokens .* \(first: here, of 95"):
        generate(tiny_lm, tiny_tokenizer, [[4] * 94, [4] * 95], max_new_tokens=2, batch_size=4, where=["there", "here"])


def test_a_batch_beyond_the_devices_memory_says_what_to_lower(tiny_lm, tiny_tokenizer, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny_lm, "generate", full)
    with pytest.raises(EvaluationError, match=r"2 prompts of up to 3 tokens .* Lower batch_size"):
        generate(tiny_lm, tiny_tokenizer, [[4], [4, 5, 6]], max_new_tokens=2, batch_size=4)


def test_a_model_without_any_end_token_is_refused(tiny_lm, tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    tiny_lm.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="end-of-sequence token"):
        generate(tiny_lm, tiny_tokenizer, [[4]], max_new_tokens=2, batch_size=4)


@pytest.mark.parametrize(
    "bad",
    [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -0.1}, {"temperature": float("nan")}, {"seed": -1}],
)
def test_settings_that_cannot_be_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"^{next(iter(bad))} is ") as refused:
        DecodingSettings(**bad)
    assert refused.value.field == next(iter(bad))
