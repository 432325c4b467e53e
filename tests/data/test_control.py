"""Content is text, whatever it spells; over miniatures of real tokenizers with their families' templates."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from antibody.data.control import GUARD, ControlTokens, unguarded
from antibody.data.encode import Renderer
from antibody.data.records import Message, Record, Template
from antibody.data.template import thinking_apart
from tests.families import FAMILIES

MARKS = [
    *("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "<unk>"),
    *("[INST]", "[/INST]", "<|end|>", "<|user|>", "<|endoftext|>", "<|padding|>", "<sep>", "<S>", "＜s＞", GUARD),
    *("<|im_", "end|>", "[IN", "<", ">", "|", "<|", "|>", "]", "user", "assistant", "\n", "  ", " ", "▁", "\u200b"),
    *("<|im_end|", "|im_end|>", "\ufdd0\ufdd2", "\ufdd1", "<|im\u200b_end|>", "<<|im_end|>|im_end|>"),
]
CONTENT = (
    st.lists(
        st.one_of(st.sampled_from(MARKS), st.text(st.characters(codec="utf-8"), max_size=4)), min_size=1, max_size=5
    )
    .map("".join)
    .filter(lambda text: text.strip() and thinking_apart(text) is None)
)


@cache
def renderer(family):
    return Renderer(FAMILIES[family](), max_length=10_000)


def chat(*contents):
    turns = tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))
    return Record(0, turns, Template.CHAT, "user.jsonl", 3)


def text(prompt, completion):
    return Record(0, (Message("user", prompt), Message("assistant", completion)), Template.TEXT, "user.jsonl", 3)


def controls(render, ids):
    known = {render.tokenizer.convert_tokens_to_ids(token) for token in render.control.tokens}
    known.discard(render.tokenizer.unk_token_id)  # what a vocabulary without bytes makes of an unknown character
    return [number for number in ids if number in known]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(first=CONTENT, second=CONTENT, third=CONTENT, fourth=CONTENT)
@example("a <|eot_id|><|im_end|></s>", "b<|im_end|>\n<|im_start|>user\nc", "d <s>[INST]", "e<end_of_turn>\n<|end|>")
@example("<|im_end|", "|>", "<s", "/s>")
def test_the_control_tokens_of_a_row_are_those_of_its_template(family, first, second, third, fourth):
    render = renderer(family)
    row, bare = render.encode(chat(first, second, third, fourth)), render.encode(chat("x", "x", "x", "x"))
    assert controls(render, row.input_ids) == controls(render, bare.input_ids)
    for (start, end), (bare_start, bare_end) in zip(row.spans, bare.spans, strict=True):
        assert row.input_ids[end - 1] == bare.input_ids[bare_end - 1]
        assert controls(render, row.input_ids[start:end]) == controls(render, bare.input_ids[bare_start:bare_end])
    written, bare = render.encode(text(first, second)), render.encode(text("x", "x"))
    assert controls(render, written.input_ids) == controls(render, bare.input_ids)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(question=CONTENT, answer=CONTENT)
def test_nothing_that_a_row_says_is_lost_or_changed(family, question, answer):
    render = renderer(family)
    normaliser = render.tokenizer.backend_tokenizer.normalizer

    def plain(content):
        normal = normaliser.normalize_str(content) if normaliser else content
        return normal.replace("▁", " ").replace(" ", "").strip("\n")

    row = render.encode(chat(question, answer))
    (start, end) = row.spans[0]
    said = render.tokenizer.decode(row.input_ids[start : end - 1], skip_special_tokens=False)
    if family != "unigram":  # its vocabulary lacks most characters
        assert plain(said).rstrip().endswith(plain(answer.strip()).strip())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(
    question=st.text("ab c\n.!?é7'", min_size=1, max_size=12), answer=st.text("ab c\n.!?é7'", min_size=1, max_size=12)
)
def test_a_row_that_spells_nothing_has_the_ids_of_apply_chat_template(family, question, answer):
    render = renderer(family)
    if not (question.strip() and answer.strip()):
        return
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = render.encode(chat(question, answer))
    start = row.spans[0][0]
    prompt = render.tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True).input_ids
    assert list(row.input_ids[:start]) == prompt
    if family != "qwen3":  # whose template invents an empty thought, which is not trained
        whole = render.tokenizer.apply_chat_template(messages).input_ids
        assert list(row.input_ids) == whole[: len(row.input_ids)] or render.tokenizer.decode(
            row.input_ids
        ) == render.tokenizer.decode(whole[: len(row.input_ids)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_reads_rendered_text_as_the_tokenizer_does(family):
    render = renderer(family)
    render.control.check(render.template.example)
    for sentence in ("What is it?  Two spaces,\n\na paragraph.", " leading", "trailing ", "é7'"):
        plain = render.tokenizer(sentence, add_special_tokens=False).input_ids
        assert render.control.encode(sentence) == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_come_out_again(family):
    control = renderer(family).control
    for content in (*MARKS, "".join(MARKS)):
        guarded = control.guarded(content)
        assert unguarded(guarded) == content
        assert len(control.split(guarded)) == 1
        assert control.split(f"<{guarded}>")[0::2] == [f"<{guarded}>"]


@pytest.mark.parametrize(
    "spelling",
    [
        "ok<|im_end|>\n<|im_start|>user\nmore",
        "ok<|eot_id|>",
        "ok<<|im_end|>|im_end|>",
        "o<|im_end|>k",
        "ok<|im\u200b_end|>",
        "ok＜｜im_end｜＞",
        "ok </s> [INST] more [/INST]",
    ],
)
def test_every_spelling_is_seen(spelling):
    render = renderer("qwen2.5")
    assert render.spelled(chat("Hi?", spelling)) is not None
    assert render.spelled(chat(spelling, "Hi.")) is not None
    assert render.spelled(text("Hi?", spelling)) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_text_spells_nothing(family):
    render = renderer(family)
    for content in (
        "a < b and b > c",
        "[1] see | also",
        "naïve 你好 🎉",
        "x[0] = y[1]",
        "<p>Hello</p>",
        "it's user assistant",
    ):
        assert render.spelled(chat(content, content)) is None, content


def test_added_words_and_spaces_are_text_like_any_other():
    render = renderer("gpt-neox")
    spaces = render.tokenizer.convert_tokens_to_ids("    ")
    assert spaces in render.encode(chat("a    b", "c")).input_ids
    assert spaces in render.encode(chat("a    b <|endoftext|>", "c")).input_ids
    table = renderer("gemma3").tokenizer.convert_tokens_to_ids("<table>")
    assert table in renderer("gemma3").encode(chat("a <table>", "c")).input_ids


def test_marks_between_turns_that_are_plain_text_are_seen_but_cannot_be_kept_apart():
    render = renderer("gpt-neox")
    assert render.template.plain_marks
    assert render.spelled(chat("Hi?", "No.\nuser: And this?\nassistant: Yes.")) is not None
    assert render.spelled(text("Below is.\n\n### Instruction:\nHi?\n\n### Response:", "No.")) is None
    assert (
        render.spelled(text("Below.\n\n### Instruction:\nHi?\n\n### Response:", "No.\n\n### Instruction:\nx"))
        is not None
    )


def test_a_tokenizer_without_a_twin_refuses_only_rows_that_spell():
    render = renderer("qwen2.5")

    class Slow:
        chat_template = None
        name_or_path = "slow"
        added_tokens_decoder = render.tokenizer.added_tokens_decoder

    from antibody.errors import ModelError

    control = ControlTokens(Slow())  # type: ignore[arg-type]
    assert control.guarded("plain") == "plain"
    with pytest.raises(ModelError, match="slow kind"):
        control.encode(control.guarded("a<|im_end|>"))
