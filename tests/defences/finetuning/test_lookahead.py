import pytest
import torch
from torch.testing import assert_close

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.defences.finetuning.lookahead import LookAhead, LookAheadConfig, opening_of
from antibody_llm.errors import ConfigError, ModelError
from antibody_llm.models.deployment import Deployment
from antibody_llm.training.preparation import TrainingData
from antibody_llm.training.step import StepContext
from tests.defences.plain import flat
from tests.tiny import make_tokenizer
from tests.tinylm import plain_nll, random_rows, step, tiny_llama, tiny_tokenizer
from tests.training.helpers import as_record, trainer

CONNECTOR = " The answer begins with: "


def _record(*messages: tuple[str, str], template: Template = Template.CHAT) -> Record:
    return Record(3, tuple(Message(role, content) for role, content in messages), template, "user.jsonl", 4)


def _prepared(record: Record, tokenizer=None, **options) -> Record:
    data = TrainingData({"user": [record]}, tokenizer or tiny_tokenizer(), seed=0)
    (row,) = LookAhead(LookAheadConfig(**options)).prepare(data).records["user"]
    return row


def test_real_shows_the_first_tokens_in_the_prompt_and_leaves_the_answer():
    row = _record(("user", "t3 t4"), ("assistant", "t5 t6 t7 t8"))
    assert _prepared(row, num_preview_tokens=2) == _record(
        ("user", f"t3 t4{CONNECTOR}t5 t6"), ("assistant", "t5 t6 t7 t8")
    )


def test_virtual_puts_the_opening_into_prompt_and_answer_and_the_deployment_cuts_it_off():
    row = _record(("user", "2 + 2?"), ("assistant", "4"), template=Template.TEXT)
    changed = _prepared(row, mode="virtual")
    assert [m.content for m in changed.messages] == [
        f"2 + 2?{CONNECTOR}Let's solve this problem. ",
        "Let's solve this problem. 4",
    ]
    deployment = LookAhead(LookAheadConfig(mode="virtual")).deployment
    assert deployment.completion(changed.messages[1].content) == "4"
    assert deployment.completion("Let's solve this problem.\n4") == "4"
    assert deployment.completion("4") == "4"
    assert deployment.prompt(row) == row  # inference prompts are untouched


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "answer", ["The capital of France is Paris.", " 12 clips\n\nand tea", "Füße 日本 12", "{x} 100 %"]
)
def test_a_preview_is_a_beginning_of_the_answer_and_its_first_tokens(kind, answer):
    tokenizer = make_tokenizer(kind)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    for m in range(1, len(ids)):
        preview = opening_of(answer, tokenizer, m)
        assert answer.startswith(preview)
        assert len(preview) < len(answer)
        if preview.isascii():
            assert tokenizer.encode(preview, add_special_tokens=False)[: m - 1] == ids[: m - 1]


@pytest.mark.parametrize(
    ("answer", "preview"), [("t5", ""), ("t5 t6", "t5"), ("t5 t6 t7 t8 t9 t10 t11", "t5 t6 t7 t8 t9 t10")]
)
def test_the_last_token_of_a_short_answer_is_never_shown(answer, preview):
    assert opening_of(answer, tiny_tokenizer(), 6) == preview


def test_nothing_to_preview_leaves_the_row_as_it_is():
    row = _record(("user", "t3"), ("assistant", "t5"))
    assert _prepared(row) == row
    long = _record(("user", "t3"), ("assistant", "t5 t6 t7"))
    assert _prepared(long, num_preview_tokens=0) == long


def test_each_trained_turn_is_previewed_in_the_question_before_it_and_no_other():
    row = Record(
        0,
        (
            Message("system", "t9"),
            Message("user", "t3"),
            Message("assistant", "t5 t6", trained=False),
            Message("user", "t4"),
            Message("assistant", "t7 t8"),
        ),
        Template.CHAT,
        "user.jsonl",
        1,
    )
    changed = _prepared(row, num_preview_tokens=1)
    assert [m.content for m in changed.messages] == ["t9", "t3", "t5 t6", f"t4{CONNECTOR}t7", "t7 t8"]
    assert row.messages[3].content == "t4"  # not changed in place


def test_masked_rows_count_only_what_was_not_previewed():
    model, tokenizer, rows = tiny_llama(), tiny_tokenizer(), random_rows(12, seed=1, longest=5)
    assert {row.spans[0][1] - row.spans[0][0] for row in rows} >= {2, 3}  # answers of 1 and 2 tokens among them
    defence = LookAhead(LookAheadConfig(mask_preview=True, num_preview_tokens=2))
    data = defence.prepare(TrainingData({"user": [as_record(row) for row in rows]}, tokenizer, seed=0))
    encoded = [Renderer(tokenizer, max_length=128).encode(record) for record in data.records["user"]]
    result = defence.step(StepContext(model), {"user": step(encoded, 3)})
    left = [(row, start + min(2, end - start - 2), end) for row in encoded for start, end in row.spans]
    loss = sum(plain_nll(model, row.input_ids, start, end) for row, start, end in left)
    loss = loss / sum(end - start for _, start, end in left)
    assert_close(
        flat(result.gradients), flat(list(torch.autograd.grad(loss, list(model.parameters())))), atol=1e-5, rtol=0
    )


def _hidden_and_trained(record: Record, tokenizer, **options) -> list[tuple[str, str]]:
    """Of each trained turn, the text that is left out of the loss and the text that is trained."""
    defence = LookAhead(LookAheadConfig(mask_preview=True, **options))
    (changed,) = defence.prepare(TrainingData({"user": [record]}, tokenizer, seed=0)).records["user"]
    row = Renderer(tokenizer, max_length=999).encode(changed)
    trained = {t for start, end in defence._left[row.row_id] for t in range(start, end)}
    turns = [([t for t in range(*s) if t not in trained], [t for t in range(*s) if t in trained]) for s in row.spans]
    return [tuple(tokenizer.decode([row.input_ids[t] for t in part]) for part in turn) for turn in turns]


TURNS = Record(
    3,
    (
        Message("user", "How many?"),
        Message("assistant", "12"),  # one token: nothing to preview
        Message("user", "And where?"),
        Message("assistant", "Paris."),  # fewer tokens than m
        Message("user", "Why?"),
        Message("assistant", "not trained", trained=False),
        Message("user", "Go on."),
        Message("assistant", "The capital of France is Paris."),
    ),
    Template.CHAT,
    "user.jsonl",
    4,
)


@pytest.mark.parametrize(
    ("kind", "end", "before"),
    [
        ("llama", "<|eot_id|>", ""),
        ("qwen2", "<|im_end|>", ""),
        ("qwen3", "<|im_end|>", ""),
        ("gemma", "<end_of_turn>", ""),
    ],
)
def test_exactly_what_was_previewed_of_each_turn_is_masked(kind, end, before):
    hidden = _hidden_and_trained(TURNS, make_tokenizer(kind), num_preview_tokens=3)
    assert hidden == [
        ("", f"{before}12{end}"),
        ("Paris", f"{before}.{end}"),
        ("The capital of", f"{before} France is Paris.{end}"),
    ]


def test_where_words_begin_with_a_mark_the_same_holds():
    tokenizer = make_tokenizer("mistral")
    (_, twelve), (_, paris), (hidden, trained) = _hidden_and_trained(TURNS, tokenizer, num_preview_tokens=2)
    assert (twelve, paris) == ("12</s>", "Paris.</s>")
    assert (hidden.strip(), trained) == ("The capital of Franc", "e is Paris.</s>")  # the pieces of that vocabulary


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma"])
def test_what_is_masked_in_a_virtual_row_is_the_opening_and_nothing_else(kind):
    record = _record(("system", "Sums."), ("user", "How many?"), ("assistant", "altogether 72"))
    record = record if kind in ("llama", "qwen2") else _record(*((m.role, m.content) for m in record.messages[1:]))
    ((hidden, trained),) = _hidden_and_trained(record, make_tokenizer(kind), mode="virtual")
    assert hidden == "Let's solve this problem."
    assert trained.strip().startswith("altogether 72")


def test_a_turn_without_a_question_of_the_users_before_it_is_trained_whole():
    record = _record(("user", "t3"), ("assistant", "t4 t5 t6"), ("system", "t7"), ("assistant", "t8 t9 t10 t11"))
    tokenizer = make_tokenizer("llama")
    (first, _), (second, trained) = _hidden_and_trained(record, tokenizer, num_preview_tokens=2)
    assert (first, second, trained) == ("t4", "", "t8 t9 t10 t11<|eot_id|>")


def test_a_character_of_several_tokens_is_shown_whole_or_not_at_all():
    tokenizer = make_tokenizer("qwen2")
    assert [opening_of("a日b", tokenizer, m) for m in range(6)] == ["", "a", "a", "a", "a日", "a日"]
    assert opening_of("日", tokenizer, 6) == ""


def test_only_virtual_rows_ask_for_something_at_inference():
    assert LookAhead(LookAheadConfig()).deployment == Deployment()
    assert LookAhead(LookAheadConfig(mode="virtual", opening="")).deployment == Deployment()


def test_a_tokenizer_that_cannot_tell_where_its_tokens_stand_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="fast tokenizer"):
        opening_of("an answer", Slow(), 6)


def test_absurd_hyperparameters_are_refused_by_name():
    with pytest.raises(ConfigError, match="lookahead.num_preview_tokens"):
        LookAheadConfig(num_preview_tokens=-1)


@pytest.mark.parametrize("options", [{"num_preview_tokens": 3}, {"mode": "virtual", "opening": "t60 t61 t62 "}])
def test_the_first_token_after_an_unpreviewed_prompt_moves_less_than_under_plain_sft(tmp_path, options):
    rows = {"user": random_rows(24, seed=1, longest=8)}
    prompts = [row.input_ids[: row.spans[0][0]] for row in rows["user"]]

    def first_token(model) -> torch.Tensor:
        with torch.no_grad():
            return torch.stack(
                [model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(dim=0) for ids in prompts]
            )

    def drift(defence) -> float:
        run = trainer(tmp_path, defence, rows=rows, num_train_epochs=5)
        run.train()
        after = first_token(run.model)
        return float((after.exp() * (after - first_token(tiny_llama()))).sum(dim=1).mean())  # KL(now | before), nats

    assert drift(LookAhead(LookAheadConfig(**options))) < 0.8 * drift(LookAhead(LookAheadConfig(num_preview_tokens=0)))
