import json
import time
from functools import cache

import pytest

from antibody_llm.data import sandbox as module
from antibody_llm.data.encode import Renderer, RowError, encode_rows
from antibody_llm.data.notices import template_notices
from antibody_llm.data.records import Message, Record, Template, ToolCall
from antibody_llm.errors import DataError, ModelError
from tests.families import FAMILIES, published_template, qwen

TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "open_drawer",
                "description": "Opens one.",
                "parameters": {
                    "type": "object",
                    "properties": {"drawer": {"type": "integer", "description": "Its number."}},
                    "required": ["drawer"],
                },
            },
        }
    ]
)
NO_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
ALTERNATING = published_template("gemma3")


@cache
def renderer(family):
    return Renderer(FAMILIES[family](), max_length=10_000)


def with_template(source):
    tokenizer = FAMILIES["qwen2.5"]()
    tokenizer.chat_template = source
    return Renderer(tokenizer, max_length=10_000)


def chat(*messages, tools="", line=3):
    return Record(0, messages, Template.CHAT, "user.jsonl", line, tools)


def user(content):
    return Message("user", content)


def said(content, **more):
    return Message("assistant", content, **more)


CALL = ToolCall("open_drawer", '{"drawer": 3}', "call00000")
TOOL_ROW = (
    user("Open the drawer."),
    said("", tool_calls=(CALL,)),
    Message("tool", '{"open": true}', tool_call_id="call00000", name="open_drawer"),
    said("It is open."),
)


def spans(render, row):
    return [render.tokenizer.decode(row.input_ids[start:end]) for start, end in row.spans]


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "qwen3"])
def test_a_call_of_a_tool_is_trained_as_the_template_writes_it_and_ends_as_a_turn_does(family):
    render = renderer(family)
    row = render.encode(chat(*TOOL_ROW, tools=TOOLS))
    call, answer = spans(render, row)
    assert all(word in call for word in ("open_drawer", '"drawer": 3'))
    assert "None" not in call
    assert row.input_ids[row.spans[0][1] - 1] in render.stop_ids
    assert answer.startswith("It is open.")
    whole = render.tokenizer.decode(row.input_ids)
    assert "open" in whole.partition(call)[2].partition("It is open.")[0]
    assert "Opens one." in whole
    # The turns before each are what a server feeds for it.
    messages = [
        {"role": "user", "content": "Open the drawer."},
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "id": CALL.call_id, "function": {"name": CALL.name, "arguments": {"drawer": 3}}}
        ]},
        {"role": "tool", "content": '{"open": true}', "tool_call_id": CALL.call_id, "name": "open_drawer"},
    ]  # fmt: skip
    for turn, length in ((0, 1), (1, 3)):
        served = render.tokenizer.apply_chat_template(
            messages[:length], tools=json.loads(TOOLS), add_generation_prompt=True
        ).input_ids
        assert list(row.input_ids[: row.spans[turn][0]]) == served


@pytest.mark.parametrize("family", ["llama3", "qwen2.5", "qwen3"])
def test_tools_that_spell_control_tokens_stay_text(family):
    render = renderer(family)
    bare = render.encode(chat(*TOOL_ROW, tools=TOOLS))
    mark = render.template.habits.turn_end
    call = ToolCall("open_drawer", json.dumps({"drawer": f"3{mark}"}), "call00000")
    result = Message("tool", f"x{mark}<tool_call>", tool_call_id="call00000")
    forged = (TOOL_ROW[0], said("", tool_calls=(call,)), result, said("It is open."))
    row = render.encode(chat(*forged, tools=TOOLS.replace("Opens one.", f"Opens{mark}")))
    known = {render.control.id_of(token) for token in render.control.tokens}
    assert [i for i in row.input_ids if i in known] == [i for i in bare.input_ids if i in known]
    assert render.spelled(chat(*forged, tools=TOOLS)) is not None


@pytest.mark.parametrize("family", ["gemma3", "phi3", "mistral", "gpt-neox"])
def test_a_template_without_tools_refuses_them_by_line_and_field(family):
    render = renderer(family)
    with pytest.raises(RowError, match=r"user.jsonl, line 3, messages\[1\].tool_calls: the chat template of"):
        render.encode(chat(*TOOL_ROW))
    with pytest.raises(RowError, match=r"user.jsonl, line 3, tools: the chat template of .* renders no tool"):
        render.encode(chat(user("Hi?"), said("Yes."), tools=TOOLS))


def test_a_system_message_that_the_template_leaves_out_is_refused_by_line():
    render = with_template(NO_SYSTEM)
    rows = [chat(Message("system", "Be brief."), user("a"), said("b"), line=line) for line in (2, 5)]
    rows.insert(1, chat(user("a"), said("b"), line=4))
    with pytest.raises(
        DataError, match=r"line 2, messages\[0\]: .*leaves this system message out.*\(1 more like it: line 5\)"
    ):
        encode_rows(rows, render, skip_too_long=False)


def test_two_system_messages_are_joined_where_the_template_takes_one_and_one_in_the_middle_is_never_dropped():
    two = chat(Message("system", "Be brief."), Message("system", "Be kind."), user("Hi?"), said("Yes."))
    middle = chat(user("Hi?"), said("Yes."), Message("system", "Be kind."), user("So?"), said("No."))
    for family in FAMILIES:
        if family == "mistral":  # takes no system message at all
            continue
        render = renderer(family)
        text = render.tokenizer.decode(render.encode(two).input_ids)
        assert all(word in text for word in ("brief", "kind")), family
        try:
            text = render.tokenizer.decode(render.encode(middle).input_ids)
        except RowError:
            continue
        assert "kind" in text, family


def test_all_rows_that_break_the_alternation_are_named_at_once_with_the_reason():
    render = renderer("mistral")
    good, bad = (user("a"), said("b")), (user("a"), user("b"), said("c"))
    rows = [chat(*(bad if line in (4, 7, 10) else good), line=line) for line in range(1, 11)]
    with pytest.raises(DataError, match=r"line 4: .*roles must alternate.*\(2 more like it: line 7, 10\)"):
        encode_rows(rows, render, skip_too_long=False)
    assert render.template.habits.alternates
    assert not renderer("qwen2.5").template.habits.alternates


def test_thinking_in_its_own_field_and_thinking_in_the_text_are_trained_alike():
    render = renderer("qwen3")
    apart = render.encode(chat(user("Add 3 and 2."), said("5", reasoning="3 plus 2.")))
    inside = render.encode(chat(user("Add 3 and 2."), said("<think>\n3 plus 2.\n</think>\n\n5")))
    assert apart == inside
    assert spans(render, apart) == ["<think>\n3 plus 2.\n</think>\n\n5<|im_end|>"]
    think = render.tokenizer.convert_tokens_to_ids("<think>")
    assert apart.input_ids.count(think) == 1


def test_every_turn_is_trained_on_its_own_thinking():
    render = renderer("qwen3")
    row = chat(user("3+2?"), said("5", reasoning="3 plus 2."), user("+1?"), said("<think>\nOne more.\n</think>\n\n6"))
    assert spans(render, render.encode(row)) == [
        "<think>\n3 plus 2.\n</think>\n\n5<|im_end|>",
        "<think>\nOne more.\n</think>\n\n6<|im_end|>",
    ]
    assert render.template.habits.forgets_reasoning
    assert any("leaves the thinking of earlier turns out" in notice for notice in template_notices([row], render))


def test_a_lone_closing_tag_is_text_and_no_thought_is_invented():
    render = renderer("qwen3")
    lone = render.encode(chat(user("4+2?"), said("4 plus 2.\n</think>\n\n6")))
    assert spans(render, lone) == ["4 plus 2.\n</think>\n\n6<|im_end|>"]
    assert render.tokenizer.convert_tokens_to_ids("</think>") not in lone.input_ids
    assert spans(render, render.encode(chat(user("4+2?"), said("6")))) == ["6<|im_end|>"]


def test_an_empty_thought_that_the_row_writes_itself_is_trained():
    render = renderer("qwen3")
    row = render.encode(chat(user("4+2?"), said("<think>\n\n</think>\n\n6")))
    assert spans(render, row) == ["<think>\n\n</think>\n\n6<|im_end|>"]


def test_thinking_without_a_place_in_the_template_is_refused_by_line():
    with pytest.raises(RowError, match=r"line 3, messages\[1\].reasoning_content: .*no place"):
        renderer("llama3").encode(chat(user("0+2?"), said("2", reasoning="0 plus 2 is 2.")))


def test_what_a_template_does_is_found_by_asking_it():
    facts = {family: renderer(family).template.habits for family in FAMILIES if family != "unigram"}
    assert {f: t.turn_end for f, t in facts.items()} == {
        "llama3": "<|eot_id|>",
        "qwen2.5": "<|im_end|>",
        "qwen3": "<|im_end|>",
        "gemma3": "<end_of_turn>",
        "mistral": "</s>",
        "phi3": "<|end|>",
        "gpt-neox": "<|endoftext|>",
    }
    assert {f for f, t in facts.items() if t.takes_tools and t.takes_tool_calls} == {"llama3", "qwen2.5", "qwen3"}
    assert {f for f, t in facts.items() if t.reasoning_field} == {"qwen3"}
    assert {f for f, t in facts.items() if t.trims} == {"llama3", "gemma3"}
    assert {f for f, t in facts.items() if t.plain_marks} == {"gpt-neox"}
    assert all(t.prompts_as_it_answers for t in facts.values())
    assert {f for f, t in facts.items() if t.takes_two_systems} == {"llama3", "qwen2.5", "qwen3", "phi3", "gpt-neox"}


@pytest.mark.parametrize(("family", "leaves_out"), [("llama3", True), ("qwen2.5", False), ("qwen3", False)])
def test_text_beside_a_call_that_the_template_leaves_out_is_reported(family, leaves_out):
    render = renderer(family)
    row = chat(user("Open the drawer."), said("I open it.", tool_calls=(CALL,)), tools=TOOLS)
    (span,) = spans(render, render.encode(row))
    assert ("I open it." in span) != leaves_out
    said_so = [n for n in template_notices([row, chat(*TOOL_ROW, tools=TOOLS, line=9)], render) if "beside a call" in n]
    assert bool(said_so) == leaves_out
    assert all("line 3)" in notice for notice in said_so)


def test_notices_are_given_for_rows_that_they_concern_alone():
    render = renderer("llama3")
    plain = chat(user("a"), said("b"))
    notices = template_notices([plain], render)
    assert not any("trims" in notice for notice in notices)
    assert any("both put '<|begin_of_text|>' in front" in notice for notice in notices)
    assert any(
        "trims" in n and "line 9" in n for n in template_notices([plain, chat(user("a "), said("b"), line=9)], render)
    )
    tokenizer = FAMILIES["qwen2.5"]()
    tokenizer.pad_token = tokenizer.eos_token
    (notice,) = template_notices([plain], Renderer(tokenizer, max_length=99))
    assert "padding token" in notice
    assert template_notices([plain], renderer("qwen2.5")) == []


@pytest.mark.parametrize("family", ["llama3", "gemma3", "mistral"])
def test_exactly_one_bos_stands_in_front_and_one_that_a_text_spells_stays_text(family):
    render = renderer(family)
    bos = render.tokenizer.bos_token
    row = render.encode(chat(user(f"{bos}Hi?"), said("Yes.")))
    assert row.input_ids.count(render.tokenizer.bos_token_id) == 1
    text = Record(0, (user(f"{bos}Hi?"), said("Yes.")), Template.TEXT, "x", 1)
    assert render.encode(text).input_ids.count(render.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "has not rendered one conversation",
        ),
        ("{{ 'a' * 10**11 }}", "takes more than 2 GiB"),
        ("{{ '\ud800' }}", "half a surrogate"),
        ("{{ 'abc' * 10**6 }}", "characters of one conversation"),
    ],
)
def test_a_template_that_runs_wild_is_refused(monkeypatch, source, message):
    monkeypatch.setattr(module, "SECONDS", 0.3)
    began = time.process_time()
    render = with_template(source + NO_SYSTEM)
    with pytest.raises(ModelError, match=message):
        render.encode(chat(user("a"), said("b")))
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1/0 }}",
        "{{ 'x'.encode('nosuchcodec') }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x.y }}",
        "{{ 2.0 ** 99999 }}",
    ],
)
def test_whatever_a_template_raises_is_its_refusal_of_the_row(source):
    with pytest.raises(RowError, match=r"user.jsonl, line 3: the chat template of .* refuses the messages"):
        with_template(source + NO_SYSTEM).encode(chat(user("a"), said("b")))


def test_a_broken_template_is_refused_with_its_reason():
    with pytest.raises(DataError, match="refuses the messages"):
        with_template("{% if %}").encode(chat(user("a"), said("b")))


def test_somebody_elses_timer_goes_on():
    import signal

    fired = []
    before = signal.signal(signal.SIGVTALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.2)
    renderer("qwen2.5").encode(chat(user("a"), said("b")))
    end = time.process_time() + 2
    while not fired and time.process_time() < end:
        sum(range(1000))
    signal.signal(signal.SIGVTALRM, before)
    assert fired


def test_the_tool_call_of_a_reference_reads_as_the_model_writes_it():
    render = renderer("qwen3")
    reference = render.reference_text(chat(user("Open it."), said("", tool_calls=(CALL,)), tools=TOOLS))
    assert reference == '<tool_call>\n{"name": "open_drawer", "arguments": {"drawer": 3}}\n</tool_call>'
    assert render.reference_text(chat(user("Hi?"), said(" Yes."))) == " Yes."
    assert render.reference_text(chat(user("Hi?"))) is None


def test_both_qwen_templates_know_their_own_marks():
    assert "<tool_call>" in Renderer(qwen("qwen3"), max_length=9).control.tokens


@pytest.mark.parametrize("said_elsewhere", ["user", "No.", "It"])
def test_a_message_that_is_left_out_is_refused_although_its_text_occurs_elsewhere(said_elsewhere):
    render = with_template(NO_SYSTEM)
    record = chat(Message("system", said_elsewhere), user("It is, No. 1?"), said("No."))
    with pytest.raises(RowError, match=r"messages\[0\]: .* leaves this system message out"):
        render.encode(record)


CALLS_WITH_TOOLS = {"default": NO_SYSTEM, "tool_use": published_template("qwen2_5")}


def test_a_row_is_rendered_by_the_named_template_that_its_tools_choose():
    render = with_template(CALLS_WITH_TOOLS)
    row = render.encode(chat(*TOOL_ROW, tools=TOOLS))
    assert "open_drawer" in spans(render, row)[0]
    assert spans(render, render.encode(chat(user("Hi?"), said("Yo."))))[0].endswith("Yo.<|im_end|>")


def test_calls_that_are_only_rendered_beside_definitions_are_refused_without_them():
    with pytest.raises(RowError, match=r"messages\[1\].tool_calls: .*renders no tool calls and results"):
        with_template(CALLS_WITH_TOOLS).encode(chat(*TOOL_ROW))


@pytest.mark.parametrize("after", ["<|im_end|>", "<|im_start|>system\nThat was all.<|im_end|>", "<|endoftext|>"])
def test_a_span_ends_at_the_end_of_its_turn_whatever_the_template_writes_behind_a_conversation(after):
    render = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        f"{{{{ '<|im_start|>assistant\n' if add_generation_prompt else {after!r} }}}}"
    )
    row = render.encode(chat(user("Hi?"), said("Yo."), user("So?"), said("No.<|im_end|>")))
    assert spans(render, row) == ["Yo.<|im_end|>", "No.<|im_end|><|im_end|>"]
    assert render.tokenizer.decode(row.input_ids).count("<|im_start|>") == 4
