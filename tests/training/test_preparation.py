from antibody.data.records import Message, Record, Template
from antibody.training.preparation import Deployment, added, with_system_prefix


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
