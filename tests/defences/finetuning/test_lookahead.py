import pytest
import torch
from torch.testing import assert_close

from antibody.data.encode import Renderer
from antibody.data.records import Message, Record, Template
from antibody.defences.finetuning.lookahead import LookAhead, LookAheadConfig, masked, opening_of
from antibody.errors import ConfigError, ModelError
from antibody.training.preparation import Deployment, TrainingData
from antibody.training.step import StepContext
from tests.defences.plain import flat
from tests.tiny import make_tokenizer
from tests.tinylm import plain_nll, random_rows, step, tiny_llama, tiny_tokenizer
from tests.training.helpers import trainer

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
        assert len(preview) < len(answer) or "日" in answer  # a character of several tokens is shown whole
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
    model, rows = tiny_llama(), random_rows(4, seed=1)
    defence = LookAhead(LookAheadConfig(mask_preview=True, num_preview_tokens=2))
    result = defence.step(StepContext(model), {"user": step(rows, 2)})
    left = [(row, min(row.spans[0][0] + 2, row.spans[0][1] - 1), row.spans[0][1]) for row in rows]
    loss = sum(plain_nll(model, row.input_ids, start, end) for row, start, end in left)
    loss = loss / sum(end - start for _, start, end in left)
    assert_close(
        flat(result.gradients), flat(list(torch.autograd.grad(loss, list(model.parameters())))), atol=1e-5, rtol=0
    )


def test_what_is_masked_in_a_virtual_row_is_the_opening_and_nothing_else():
    tokenizer = make_tokenizer("qwen2")
    defence = LookAhead(LookAheadConfig(mode="virtual", mask_preview=True))
    record = _record(("user", "How many?"), ("assistant", "altogether 72"))
    row = Renderer(tokenizer, max_length=999).encode(
        defence.prepare(TrainingData({"user": [record]}, tokenizer, seed=0)).records["user"][0]
    )
    (start, end), ids = masked(row, defence._num_masked).spans[0], list(row.input_ids)
    assert tokenizer.decode(ids[row.spans[0][0] : start]) == "Let's solve this problem."
    assert tokenizer.decode(ids[start:end]).startswith(" altogether 72")


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
