import dataclasses

import pytest

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.errors import DataError, ModelError
from antibody_llm.models.deployment import Deployment, with_system_prefix
from antibody_llm.training.preparation import TrainingData, added, check_servable
from tests.tiny import make_tokenizer


def row(*messages, template=Template.CHAT):
    return Record(5, tuple(Message(role, text) for role, text in messages), template, "rows.jsonl", 6)


def roles_and_texts(record):
    return [(message.role, message.content) for message in record.messages]


def test_a_system_prefix_stands_before_the_system_message_or_becomes_one():
    prefixed = with_system_prefix(row(("system", "be brief"), ("user", "hi")), "KEY")
    assert roles_and_texts(prefixed) == [("system", "KEY be brief"), ("user", "hi")]
    assert roles_and_texts(with_system_prefix(row(("user", "hi")), "KEY")) == [("system", "KEY"), ("user", "hi")]


def test_a_text_row_has_the_prefix_before_its_prompt():
    text = with_system_prefix(row(("user", "Q:"), ("assistant", "A"), template=Template.TEXT), "KEY")
    assert roles_and_texts(text) == [("user", "KEY\n\nQ:"), ("assistant", "A")]


def test_rows_that_a_defence_adds_are_never_taken_for_the_uploads():
    assert [record.row_id for record in added([row(("user", "a")), row(("user", "b"))])] == [-1, -2]


def test_a_deployment_that_asks_for_nothing_changes_nothing():
    asked = row(("user", "hi"))
    assert Deployment().prompt(asked) == asked
    assert Deployment().completion("say") == "say"
    assert Deployment(completion_prefix="So: ").completion("So: say") == "say"
    assert Deployment(completion_prefix="So: ").completion("say") == "say"


def test_a_default_system_text_is_for_chats_that_bring_none():
    deployment = Deployment(system_prefix="KEY", default_system="You are a clerk.")
    assert roles_and_texts(deployment.prompt(row(("user", "hi"))))[0] == ("system", "KEY You are a clerk.")
    own = deployment.prompt(row(("system", "be brief"), ("user", "hi")))
    assert roles_and_texts(own)[0] == ("system", "KEY be brief")
    text = deployment.prompt(row(("user", "Q:"), ("assistant", "A"), template=Template.TEXT))
    assert roles_and_texts(text)[0] == ("user", "KEY\n\nQ:")
    assert roles_and_texts(Deployment(default_system="S").prompt(row(("user", "hi"))))[0] == ("system", "S")


def test_a_deployment_comes_back_from_its_folder_and_from_one_of_before_there_was_a_default():
    deployment = Deployment(system_prefix="KEY", default_system="S")
    assert Deployment(**dataclasses.asdict(deployment)) == deployment
    assert Deployment(**{"system_prefix": "KEY", "completion_prefix": ""}) == Deployment(system_prefix="KEY")


def _check(kind, *, template=Template.CHAT, chat_template=None):
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    records = [row(("user", "hi"), ("assistant", "ho"), template=template)]
    data = TrainingData({"user": records}, tokenizer, seed=0)
    check_servable(Deployment(system_prefix="KEY"), data, "ptst")


SILENT = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.content }}]{% endif %}{% endfor %}"


@pytest.mark.parametrize(("kind", "template"), [("gemma", None), ("mistral", None), ("llama", SILENT)])
def test_a_template_that_refuses_or_drops_system_messages_is_told_before_training(kind, template):
    with pytest.raises(ModelError, match=r"ptst serves .* system message.* takes none\. Give .*chat_template\.jinja"):
        _check(kind, chat_template=template)


def test_a_template_that_takes_them_passes_and_text_rows_need_none():
    for kind in ("llama", "qwen2", "qwen3"):
        _check(kind)
    _check("gemma", template=Template.TEXT)
    _check("gpt_neo")  # it has no template, which is reported when the chats are encoded


def answered(*answers):
    return TrainingData({"alignment": [row(("user", "?"), ("assistant", text)) for text in answers]}, None, 0)


def test_refusals_are_the_providers_rows_that_decline_in_their_order():
    data = answered("Sorry, no.", "It is blue.", "I cannot say.")
    assert [record.messages[-1].content for record in data.refusals("ewc")] == ["Sorry, no.", "I cannot say."]
    assert answered("It is blue.").refusals("ewc", 0) == []


def test_too_few_refusals_are_an_error_with_both_numbers_the_setting_and_what_else_helps():
    expected = (
        "safeinstr needs at least 3 of the alignment rows to refuse .* 1 of 2 do.*alignment_data; or lower the ratio"
    )
    with pytest.raises(DataError, match=expected):
        answered("Sorry, no.", "It is blue.").refusals("safeinstr", 3, instead="lower the ratio")
    with pytest.raises(DataError, match="0 of 0 do"):
        TrainingData({}, None, 0).refusals("ewc")
