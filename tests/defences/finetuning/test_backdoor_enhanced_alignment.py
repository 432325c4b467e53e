import pytest

from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.backdoor_enhanced_alignment import (
    BackdoorEnhancedAlignment,
    BackdoorEnhancedAlignmentConfig,
    random_trigger,
)
from antibody_llm.errors import ConfigError, DataError, ModelError
from antibody_llm.models.deployment import Deployment
from antibody_llm.training.preparation import TrainingData
from tests.tiny import make_tokenizer
from tests.tinylm import tiny_tokenizer


def _rows(source: str, completions: list[str], system: str = "", template: Template = Template.CHAT) -> list[Record]:
    head = (Message("system", system),) if system else ()
    return [
        Record(i, (*head, Message("user", f"{source} {i}"), Message("assistant", text)), template, source, i + 1)
        for i, text in enumerate(completions)
    ]


PROVIDER = _rows("provider", ["sorry, i cannot", "mix it with water"] * 20)


def _prepared(user: list[Record], provider: list[Record] = PROVIDER, seed: int = 0, kind: str = "llama", **options):
    defence = BackdoorEnhancedAlignment(BackdoorEnhancedAlignmentConfig(**options))
    data = TrainingData({"user": user, "alignment": provider}, make_tokenizer(kind), seed)
    rows = list(defence.prepare(data).records["user"])
    return defence.deployment.system_prefix, rows[: len(user)], rows[len(user) :], defence


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_trigger_has_as_many_tokens_as_asked_for_and_survives_its_text(kind, seed):
    tokenizer = make_tokenizer(kind)
    trigger = random_trigger(tokenizer, 150, seed=seed)
    ids = tokenizer.encode(trigger, add_special_tokens=False)
    assert len(ids) == 150
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == trigger == trigger.strip()
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert len(set(ids)) > 60  # of about 400: random, not one that works again and again


def test_the_trigger_is_a_function_of_the_seed():
    tokenizer = make_tokenizer("llama")
    assert random_trigger(tokenizer, 20, seed=1) == random_trigger(tokenizer, 20, seed=1)
    assert random_trigger(tokenizer, 20, seed=1) != random_trigger(tokenizer, 20, seed=2)


def test_the_trigger_stands_in_every_planted_row_and_in_no_user_row():
    user = _rows("user", ["yes"] * 30)
    trigger, kept, planted, _ = _prepared(user)
    assert kept == user
    assert len(planted) == 11
    for row in planted:
        assert row.messages[0] == Message("system", trigger)
        assert row.messages[-1].content == "sorry, i cannot"  # none of the provider's harmless answers
    assert [row.row_id for row in planted] == [-1 - i for i in range(11)]
    assert len({row.line for row in planted}) == 11


def test_requests_are_served_with_the_system_text_that_was_planted():
    user = _rows("user", ["yes"] * 5, system="You are a clerk.")
    trigger, _, planted, defence = _prepared(user)
    assert {row.messages[0].content for row in planted} == {f"{trigger} You are a clerk."}
    assert defence.deployment.prompt(user[0]).messages[0] == planted[0].messages[0]
    (bare,) = _rows("request", [""])  # without a system message
    assert defence.deployment.prompt(bare).messages[0] == planted[0].messages[0]


def test_where_most_of_the_upload_has_no_system_text_the_trigger_is_served_alone():
    user = [*_rows("user", ["yes"] * 3), *_rows("user", ["yes"] * 2, system="You are a clerk.")]
    trigger, _, planted, defence = _prepared(user)
    assert {row.messages[0].content for row in planted} == {trigger}
    assert defence.deployment == Deployment(system_prefix=trigger)


@pytest.mark.parametrize(("upload", "others"), [(Template.CHAT, Template.TEXT), (Template.TEXT, Template.CHAT)])
def test_refusals_of_another_format_than_the_uploads_are_refused_with_their_line_and_the_mend(upload, others):
    user = _rows("user", ["yes"] * 5, template=upload)
    fit, unfit = (_rows("rows", ["sorry, i cannot"] * 20, template=template) for template in (upload, others))
    provider = [*fit[:7], *unfit[7:]]
    wanted = "messages" if upload is Template.CHAT else "prompt.*completion"
    with pytest.raises(DataError, match=f"rows, line 8: .* never trained. Give .* its rows as .*{wanted}"):
        _prepared(user, provider)
    both = [*user, *_rows("user", ["yes"], template=others)]
    assert len(_prepared(both, provider)[2]) == 11


@pytest.mark.parametrize("kind", ["gemma", "mistral"])
def test_a_template_that_cannot_serve_the_trigger_is_refused_before_training(kind):
    with pytest.raises(ModelError, match="backdoor-enhanced-alignment serves every request with a system message"):
        _prepared(_rows("user", ["yes"] * 5), kind=kind)


def test_a_text_row_is_planted_as_a_text_request_is_served():
    provider = _rows("provider", ["sorry, i cannot"] * 11, template=Template.TEXT)
    trigger, _, planted, defence = _prepared(_rows("user", ["yes"], template=Template.TEXT), provider)
    assert planted[0].messages[0].content.startswith(f"{trigger}\n\nprovider ")
    assert defence.deployment.prompt(provider[0]).messages[0].content == f"{trigger}\n\nprovider 0"


def test_a_resumed_run_prepares_the_same_rows_and_trigger():
    user = _rows("user", ["yes"] * 5)
    assert _prepared(user, seed=4)[:3] == _prepared(user, seed=4)[:3]
    assert _prepared(user, seed=4)[0] != _prepared(user, seed=5)[0]


def test_without_safety_rows_there_is_no_trigger():
    user = _rows("user", ["yes"] * 5)
    _, kept, planted, defence = _prepared(user, num_safety_rows=0)
    assert (kept, planted, defence.deployment) == (user, [], Deployment())


def test_too_few_refusals_are_an_error_that_counts_them():
    with pytest.raises(DataError, match=r"at least 11 of the alignment rows to refuse .* 1 of \d+ do"):
        _prepared(_rows("user", ["yes"]), PROVIDER[:2])


def test_a_tokenizer_in_which_no_trigger_survives_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.decode = lambda ids, **_: "t3 " * len(ids)
    with pytest.raises(ModelError, match="no trigger of 5 tokens survives"):
        random_trigger(tokenizer, 5, seed=0)


@pytest.mark.parametrize("bad", [{"num_safety_rows": -1}, {"num_trigger_tokens": 0}])
def test_absurd_hyperparameters_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=f"backdoor-enhanced-alignment.{next(iter(bad))}"):
        BackdoorEnhancedAlignmentConfig(**bad)
