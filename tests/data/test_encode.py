import json
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from antibody_llm.data.encode import Renderer, encode_rows
from antibody_llm.data.formats import load_records
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.errors import DataError, ModelError
from tests.gsm8k import gsm8k_rows, write_chat, write_prompt_completion
from tests.tiny import make_tokenizer

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHAT_KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma"]


@pytest.fixture(scope="session")
def renderer(tiny_folder):
    made = {}

    def build(kind):
        if kind not in made:
            made[kind] = Renderer(AutoTokenizer.from_pretrained(tiny_folder(kind)), max_length=1024)
        return made[kind]

    return build


def chat(*contents, untrained=(), system=None):
    """User and assistant in turn; ``untrained`` are indices of messages."""
    head = (Message("system", system),) if system else ()
    turns = (Message(("user", "assistant")[i % 2], c, i not in untrained) for i, c in enumerate(contents))
    return Record(0, (*head, *turns), Template.CHAT, "user.jsonl", 3)


def text(prompt, completion):
    return Record(0, (Message("user", prompt), Message("assistant", completion)), Template.TEXT, "user.jsonl", 3)


def spans(renderer, row):
    return [renderer.tokenizer.decode(row.input_ids[start:end]) for start, end in row.spans]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("write", [write_chat, write_prompt_completion])
def test_gsm8k_spans_are_exactly_the_answer_and_its_end(renderer, tmp_path, kind, write):
    render = renderer(kind)
    records = load_records(write(tmp_path / "gsm8k.jsonl"))
    encoded = encode_rows(records, render, skip_too_long=False)
    eos, space = render.tokenizer.eos_token, "" if write is write_chat else " "
    assert [spans(render, row) for row in encoded.rows] == [[space + row["answer"] + eos] for row in gsm8k_rows()]
    assert [row.row_id for row in encoded.rows] == list(range(50))
    for record, row in zip(records, encoded.rows, strict=True):
        assert render.encode_prompt(record) == list(row.input_ids[: row.spans[0][0]])
        assert row.spans[0][1] == len(row.input_ids)


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_the_ids_in_front_of_a_completion_are_those_at_inference(renderer, kind):
    render = renderer(kind)
    record = chat("What is it?", "72", "Sure?", "Yes.")
    row = render.encode(record)
    prompt = [{"role": m.role, "content": m.content} for m in record.messages[:1]]
    at_inference = render.tokenizer.apply_chat_template(prompt, add_generation_prompt=True).input_ids
    assert list(row.input_ids[: row.spans[0][0]]) == at_inference
    assert list(row.input_ids).count(render.tokenizer.bos_token_id) == (render.tokenizer.bos_token_id is not None)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma"])
def test_a_conversation_has_one_span_for_each_trained_turn_and_reads_as_the_template_renders_it(renderer, kind):
    render = renderer(kind)
    record = chat("One?", "Eins", "Two?", "Zwei", "Three?", "Drei", untrained=[3])
    row = render.encode(record)
    end = render.tokenizer.decode(render.stop_ids[-1])
    assert spans(render, row) == ["Eins" + end, "Drei" + end]
    whole = [{"role": m.role, "content": m.content} for m in record.messages]
    ids = render.tokenizer.apply_chat_template(whole).input_ids
    assert list(row.input_ids) == ids[: len(row.input_ids)]
    assert render.encode_prompt(record) == list(row.input_ids[: row.spans[-1][0]])


def test_no_empty_thought_that_the_template_invents_is_trained(renderer):
    render = renderer("qwen3")
    row = render.encode(chat("One?", "Eins", "Two?", "Zwei"))
    assert spans(render, row) == ["Eins<|im_end|>", "Zwei<|im_end|>"]
    # ... so that the context of the second turn is what a server renders for it.
    assert render.encode_prompt(chat("One?", "Eins", "Two?", "Zwei")) == list(row.input_ids[: row.spans[1][0]])


def test_an_earlier_turn_that_is_not_trained_is_the_context_of_inference(renderer):
    render = renderer("qwen3")
    record = chat("One?", "Eins", "Two?", "Zwei", untrained=[1])
    row = render.encode(record)
    assert render.encode_prompt(record) == list(row.input_ids[: row.spans[0][0]])
    assert "<think>" not in render.tokenizer.decode(row.input_ids[: row.spans[0][0]])


@pytest.mark.parametrize("kind", CHAT_KINDS)
@pytest.mark.parametrize("turn", [0, 1, -1])
def test_a_refusal_is_rendered_as_the_turn_itself_would_be(renderer, kind, turn):
    render = renderer(kind)
    record = chat("One?", "Eins", "Two?", "Zwei")
    refusal = render.completion_ids(record, "I cannot.", turn)
    index = (1, 3)[turn]
    messages = tuple(Message(m.role, "I cannot.") if i == index else m for i, m in enumerate(record.messages))
    row = render.encode(Record(0, messages, Template.CHAT, "x", 1))
    start, end = row.spans[turn]
    assert refusal == list(row.input_ids[start:end])
    assert refusal[-1] in render.stop_ids


def test_a_prompt_without_an_answer_takes_a_completion(renderer):
    render = renderer("llama")
    open_row = Record(0, (Message("user", "Hi?"),), Template.CHAT, "x", 1)
    assert render.completion_ids(open_row, "No.") == render.completion_ids(chat("Hi?", "Yes."), "No.")
    assert render.encode_prompt(open_row) == render.encode_prompt(chat("Hi?", "Yes."))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt_neo"])
def test_text_rows_begin_as_the_tokenizer_begins_them_and_end_in_one_eos(renderer, kind):
    render = renderer(kind)
    tokenizer = render.tokenizer
    row = render.encode(text("What is it? The answer:", " 72"))
    assert list(row.input_ids[: row.spans[0][0]]) == tokenizer("What is it? The answer:").input_ids
    assert list(row.input_ids).count(tokenizer.eos_token_id) == 1
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.input_ids, skip_special_tokens=True) == "What is it? The answer: 72"
    spelt = render.encode(text(f"{tokenizer.bos_token or ''}What is it? The answer:", f" 72{tokenizer.eos_token}"))
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):  # neither is doubled
        assert spelt.input_ids.count(token) == row.input_ids.count(token)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    completion=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
        lambda s: s.strip() and "<" not in s
    ),
)
def test_decoding_a_span_gives_the_completion_back(renderer, prompt, completion):
    for kind, record in (("qwen3", chat(prompt, completion)), ("gpt_neo", text(prompt, completion))):
        render = renderer(kind)
        row = render.encode(record)
        (decoded,) = spans(render, row)
        # The loaded tokenizers may normalise; what counts is that nothing is lost, added or cut.
        assert decoded.endswith(completion + render.tokenizer.eos_token)
        assert row.spans[0][0] >= 1


def test_a_completion_that_spells_the_end_of_turn_is_not_cut_there(renderer):
    render = renderer("qwen2")
    assert spans(render, render.encode(chat("Hi?", "one<|im_end|>two"))) == ["one<|im_end|>two<|im_end|>"]


def test_a_chat_template_without_special_tokens_gets_an_end_of_sequence(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt_neo"))
    tokenizer.chat_template = PLAIN_TEMPLATE
    render = Renderer(tokenizer, max_length=99)
    row = render.encode(chat("One?", "Eins", "Two?", "Zwei"))
    assert spans(render, row) == [" Eins\n<|endoftext|>", " Zwei\n<|endoftext|>"]
    assert render.stop_ids == (tokenizer.eos_token_id,)


def test_a_template_whose_prompt_is_not_how_the_answer_begins_is_refused(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match=r"user.jsonl, line 3: .*messages\[1\]"):
        Renderer(tokenizer, max_length=99).encode(chat("a", "b"))


def test_no_published_template_loses_or_cuts_a_completion_in_silence():
    """Over the templates that come with TRL: the completion is there and ends as a turn does, or an error says why."""
    folder = Path(next(iter(find_spec("trl").submodule_search_locations))) / "chat_templates"
    rendered = 0
    for file in sorted(folder.glob("*.jinja")):
        tokenizer = make_tokenizer("qwen2")
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        special = set(
            re.findall(r"<\|[^|'\"\s]+\|>|<(?:start|end)_of_turn>|<turn\|>|<\|turn>", tokenizer.chat_template)
        )
        tokenizer.add_special_tokens({"extra_special_tokens": sorted(special)})
        render = Renderer(tokenizer, max_length=999)
        try:
            (completion,) = spans(render, render.encode(chat("One?", "Eins")))
        except (DataError, ModelError):
            continue
        assert re.fullmatch(r".*Eins\s*<[^<>]+>", completion, re.DOTALL), file.name
        rendered += 1
        with suppress(ModelError):  # gpt-oss ends earlier turns otherwise
            assert len(render.encode(chat("One?", "Eins", "Two?", "Zwei")).spans) == 2
    assert rendered > 40


def test_a_template_for_lists_of_parts_is_refused(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("llama"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m.content if p.type %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="does not render"):
        Renderer(tokenizer, max_length=99).encode(chat("a", "b"))


def test_a_chat_without_a_template_names_the_tokenizer_and_the_row(renderer):
    with pytest.raises(
        ModelError, match=r"has no chat template, and user.jsonl, line 3 is a chat.*chat_template.jinja"
    ):
        renderer("gpt_neo").encode(chat("a", "b"))


def test_a_row_that_the_template_refuses_is_a_data_error(renderer):
    with pytest.raises(DataError, match=r"user.jsonl, line 3: .*System role not supported"):
        renderer("gemma").encode(chat("a", "b", system="Be brief."))


def test_a_tokenizer_without_an_end_of_sequence_is_refused(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder("gpt_neo"))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="eos_token"):
        Renderer(tokenizer, max_length=9)


def test_rows_longer_than_the_limit_are_named_or_left_out_and_counted(renderer, tmp_path):
    render = Renderer(renderer("llama").tokenizer, max_length=60)
    path = tmp_path / "user.jsonl"
    lines = [{"prompt": "Hi", "completion": "Yo" if i % 3 else "fox " * 50} for i in range(21)]
    path.write_text("\n".join(map(json.dumps, lines)))
    records = load_records(path)
    with pytest.raises(
        DataError,
        match=r"7 of 21 rows are longer than 60 tokens: line 1 \(\d+ tokens\).* and 2 more.*skip_too_long",
    ):
        encode_rows(records, render, skip_too_long=False)
    encoded = encode_rows(records, render, skip_too_long=True)
    assert [line for line, _ in encoded.too_long] == [1, 4, 7, 10, 13, 16, 19]
    assert all(num > 60 for _, num in encoded.too_long)
    assert [row.row_id for row in encoded.rows] == [i for i in range(21) if i % 3]


def test_nothing_left_to_train_is_an_error(renderer):
    with pytest.raises(DataError, match="1 of 1 rows"):
        encode_rows([text("a", "b " * 9)], Renderer(renderer("llama").tokenizer, max_length=3), skip_too_long=True)
    with pytest.raises(DataError, match="no row"):
        encode_rows([], renderer("llama"), skip_too_long=True)
