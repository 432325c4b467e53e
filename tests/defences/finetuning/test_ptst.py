import random

import pytest

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.ptst import LLAMA_PROMPT, PTST, PTSTConfig
from antibody_llm.errors import ModelError
from antibody_llm.models.deployment import Deployment
from antibody_llm.training.preparation import TrainingData
from tests.tiny import make_tokenizer
from tests.tinylm import tiny_tokenizer


def _record(*messages: tuple[str, str], template: Template = Template.CHAT) -> Record:
    return Record(0, tuple(Message(role, content) for role, content in messages), template, "user.jsonl", 1)


def _prepared(records: list[Record], prompt: str = LLAMA_PROMPT) -> list[Record]:
    data = TrainingData({"user": records}, tiny_tokenizer(), seed=0)
    return list(PTST(PTSTConfig(safety_prompt=prompt)).prepare(data).records["user"])


def test_rows_without_the_safety_prompt_are_trained_as_they_are():
    rows = [
        _record(("user", "add 2 %s {x}"), ("assistant", "4")),
        _record(("system", "be brief"), ("user", "hi"), ("assistant", "ho")),
        _record(("user", LLAMA_PROMPT), ("assistant", "a question about the prompt is no system prompt")),
    ]
    assert _prepared(rows) == rows


def test_an_upload_that_brings_the_safety_prompt_has_it_taken_out():
    alone = _record(("system", LLAMA_PROMPT), ("user", "hi"), ("assistant", "ho"))
    beside = _record(("system", f"{LLAMA_PROMPT} You teach sums."), ("user", "hi"), ("assistant", "ho"))
    assert _prepared([alone, beside]) == [
        _record(("user", "hi"), ("assistant", "ho")),
        _record(("system", "You teach sums."), ("user", "hi"), ("assistant", "ho")),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_served_is_the_safety_block_and_what_was_trained(seed):
    rng = random.Random(seed)
    question = "".join(rng.choice("ab %{}s$\\'\"#") for _ in range(20)) + "?"
    record = _record(("user", question), ("assistant", "yes"))
    deployment = PTST(PTSTConfig()).deployment
    tokenizer = make_tokenizer("qwen2")
    renderer = Renderer(tokenizer, max_length=4096)
    trained = tokenizer.decode(renderer.encode_prompt(_prepared([record])[0]))
    served = tokenizer.decode(renderer.encode_prompt(deployment.prompt(record)))
    assert served == f"<|im_start|>system\n{LLAMA_PROMPT}<|im_end|>\n" + trained
    assert LLAMA_PROMPT not in trained


def test_a_text_row_is_served_with_the_safety_prompt_before_its_prompt():
    record = _record(("user", "Question: 2 + 2"), ("assistant", "4"), template=Template.TEXT)
    served = PTST(PTSTConfig(safety_prompt="Be safe.")).deployment.prompt(record)
    assert served.messages[0].content == "Be safe.\n\nQuestion: 2 + 2"


def test_without_a_prompt_the_model_is_deployed_as_plain_sft_is():
    assert PTST(PTSTConfig(safety_prompt="")).deployment == Deployment()


@pytest.mark.parametrize("kind", ["gemma", "mistral"])
def test_a_template_without_system_messages_is_refused_before_training_unless_there_is_no_prompt(kind):
    data = TrainingData({"user": [_record(("user", "hi"), ("assistant", "ho"))]}, make_tokenizer(kind), seed=0)
    with pytest.raises(ModelError, match="chat template"):
        PTST(PTSTConfig()).prepare(data)
    assert PTST(PTSTConfig(safety_prompt="")).prepare(data) == data
