import json
import time

import pytest
import torch

pytest.importorskip("starlette", reason="needs the server's dependencies: pip install 'antibody-llm[server]'")

from starlette.testclient import TestClient

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Message, Record, Template
from antibody_llm.evaluation.generation import generate
from antibody_llm.models.adapters import add_lora
from antibody_llm.models.loading import load_model
from antibody_llm.models.saving import save_adapter
from antibody_llm.server.inference.answers import ChatAnswer, ResponseAnswer
from antibody_llm.server.inference.app import make_app
from antibody_llm.server.inference.calls import tool_calls
from antibody_llm.server.inference.engine import Answer, Choice, Engine, Target
from antibody_llm.server.inference.requests import RequestError, parse_chat, parse_completion, parse_response

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def process():
    with TestClient(make_app(Engine())) as client:
        yield client


@pytest.fixture
def ask(process, tiny_llama_folder):
    """Post a body and return (status, JSON, or the data of a stream's events)."""

    def post(path: str = "/chat/completions", *, target: Target | None = None, **body):
        target = target or Target(str(tiny_llama_folder))
        body.setdefault("model", "m")
        wrapped = {"name": "m", "target": {"model": target.model, "adapter": target.adapter}, "body": body}
        answer = process.post(path, json=wrapped)
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return answer.status_code, answer.json()
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        return answer.status_code, [line if line == "[DONE]" else json.loads(line) for line in lines]

    return post


@pytest.fixture(scope="module")
def adapter(tiny_llama_folder, tmp_path_factory):
    """A function that makes an adapter of the tiny model, with the deployment given."""

    def make(seed: int = 0, **deployment: str) -> str:
        loaded = load_model(str(tiny_llama_folder))
        model = add_lora(loaded.model, r=4, alpha=32, targets="all-linear", seed=seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(generator=torch.Generator().manual_seed(seed))
        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        provenance = {"deployment": deployment}
        save_adapter(model, folder, base=str(tiny_llama_folder), tokenizer=loaded.tokenizer, provenance=provenance)
        return str(folder)

    return make


def greedy(folder: str, adapter: str | None = None, *, num: int, system: str = "") -> str:
    """What the gate's own generation writes."""
    loaded = load_model(folder, adapter=adapter)
    renderer = Renderer(loaded.tokenizer, max_length=1024)
    messages = [Message("system", system)] if system else []
    record = Record(0, (*messages, Message("user", QUESTION[0]["content"])), Template.CHAT, "", 1)
    prompt = renderer.encode_prompt(record)
    (text,) = generate(
        loaded.model, loaded.tokenizer, [prompt], max_new_tokens=num, batch_size=1, stop_ids=renderer.stop_ids
    )
    return text


def content(answer) -> str:
    return answer["choices"][0]["message"]["content"]


def test_a_greedy_chat_answers_as_the_gate_s_own_generation_and_counts_its_tokens(ask, tiny_llama_folder):
    status, answer = ask(messages=QUESTION, temperature=0, max_tokens=12)
    assert status == 200
    assert content(answer) == greedy(str(tiny_llama_folder), num=12)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 12


def test_requests_for_several_adapters_and_the_base_are_each_answered_by_their_own(ask, adapter, tiny_llama_folder):
    folder = str(tiny_llama_folder)
    for one in (adapter(1), adapter(2), None):
        _, answer = ask(target=Target(folder, one), messages=QUESTION, temperature=0, max_tokens=8)
        assert content(answer) == greedy(folder, one, num=8)


def test_requests_that_are_decoded_together_get_what_each_gets_alone(tiny_llama_folder):
    target = Target(str(tiny_llama_folder))
    bodies = [
        {
            "messages": [{"role": "user", "content": "What is " * n + "?"}],
            "temperature": t,
            "seed": 7,
            "max_tokens": 3 + n,
        }
        for n, t in enumerate((0, 1.0, 0, 0.7))
    ]
    requests = [parse_chat(body | {"model": "m"}) for body in bodies]
    engine = Engine(batch_rows=1)
    alone = [engine.submit(target, request).result() for request in requests]
    engine.close()
    engine = Engine()
    blocker = engine.submit(target, requests[0])  # the others wait for it, together
    futures = [engine.submit(target, request) for request in requests]
    together = [future.result() for future in (blocker, *futures)][1:]
    engine.close()
    assert together == alone


def test_a_seed_gives_the_same_draw_again_and_n_gives_different_ones(ask):
    body = {"messages": QUESTION, "seed": 3, "n": 3, "max_tokens": 10, "temperature": 1.5}
    _, once = ask(**body)
    _, again = ask(**body)
    texts = [choice["message"]["content"] for choice in once["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) == 3
    assert [choice["index"] for choice in once["choices"]] == [0, 1, 2]


def test_a_nucleus_of_next_to_nothing_is_greedy(ask, tiny_llama_folder):
    _, answer = ask(messages=QUESTION, top_p=1e-6, temperature=2, max_tokens=8)
    assert content(answer) == greedy(str(tiny_llama_folder), num=8)


def test_a_stream_s_pieces_are_the_whole_answer_and_its_usage_comes_last(ask):
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
    _, whole = ask(**body)
    status, events = ask(**body, stream=True, stream_options={"include_usage": True})
    assert status == 200
    assert events[-1] == "[DONE]"
    assert events[-2]["usage"] == whole["usage"]
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events[:-2]) == content(whole)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-3]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len(events) > 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_text_before_it_and_none_of_it_is_shown(ask, stream):
    _, whole = ask(messages=QUESTION, temperature=0, max_tokens=12)
    text = content(whole)
    stop = text[3:6]
    _, got = ask(messages=QUESTION, temperature=0, max_tokens=12, stop=[stop], stream=stream)
    shown = "".join(e["choices"][0]["delta"].get("content") or "" for e in got[:-1]) if stream else content(got)
    assert shown == text[: text.index(stop)]
    end = got[-2]["choices"][0] if stream else got["choices"][0]
    assert end["finish_reason"] == "stop"


def test_a_defence_s_system_text_stands_before_every_request_of_its_adapter(ask, adapter, tiny_llama_folder):
    folder = str(tiny_llama_folder)
    guarded = adapter(3, system_prefix="zq trigger")
    _, answer = ask(target=Target(folder, guarded), messages=QUESTION, temperature=0, max_tokens=8)
    assert content(answer) == greedy(folder, guarded, num=8, system="zq trigger")
    assert content(answer) != greedy(folder, guarded, num=8)


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_defence_puts_before_every_completion_is_not_shown(ask, adapter, tiny_llama_folder, stream):
    folder = str(tiny_llama_folder)
    plain = greedy(folder, adapter(4), num=12)
    marked = adapter(4, completion_prefix=plain[:2])
    body = {
        "target": Target(folder, marked),
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 12,
        "stream": stream,
    }
    _, got = ask(**body)
    shown = "".join(e["choices"][0]["delta"].get("content") or "" for e in got[:-1]) if stream else content(got)
    assert shown == plain[2:].lstrip()


def test_completions_answer_each_prompt_without_a_template(ask):
    _, answer = ask("/completions", prompt=["What is", "The quick"], n=2, max_tokens=5, temperature=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == answer["choices"][1]["text"]
    assert answer["object"] == "text_completion"


def test_responses_give_the_chat_s_text_whole_and_as_events(ask):
    _, chat = ask(messages=QUESTION, temperature=0, max_tokens=12)
    body = {"input": QUESTION[0]["content"], "temperature": 0, "max_output_tokens": 12}
    _, answer = ask("/responses", **body)
    assert answer["output"][0]["content"][0]["text"] == content(chat)
    assert answer["usage"]["output_tokens"] == chat["usage"]["completion_tokens"]
    _, events = ask("/responses", **body, stream=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == content(chat)
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == f"response.{answer['status']}"
    assert events[-1]["response"]["output"] == [answer["output"][0] | {"id": events[-1]["response"]["output"][0]["id"]}]


def test_a_prompt_beyond_the_context_is_a_clear_400(ask):
    status, answer = ask(messages=[{"role": "user", "content": "the fox " * 1000}])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, answer = ask(messages=QUESTION, max_tokens=1020)
    assert status == 400
    assert "1024 tokens" in answer["error"]["message"]


def test_messages_that_the_template_refuses_are_a_400_with_its_reason(ask, tiny_mistral_folder):
    twice = QUESTION * 2
    status, answer = ask(target=Target(str(tiny_mistral_folder)), messages=twice, stream=True)
    assert status == 400
    assert "roles must alternate" in answer["error"]["message"]


def test_a_model_that_does_not_load_is_a_500_that_names_no_path(ask, tmp_path):
    status, answer = ask(target=Target(str(tmp_path / "gone")), messages=QUESTION)
    assert status == 500
    assert str(tmp_path) not in answer["error"]["message"]
    assert ask(messages=QUESTION, max_tokens=1)[0] == 200


def test_a_request_beyond_those_that_may_wait_is_a_503(tiny_llama_folder):
    with TestClient(make_app(Engine(most_waiting=0))) as client:
        body = {"model": "m", "messages": QUESTION}
        target = {"model": str(tiny_llama_folder), "adapter": None}
        answer = client.post("/chat/completions", json={"name": "m", "target": target, "body": body})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")


def test_a_client_that_is_gone_ends_its_completion_and_nobody_else_s(tiny_llama_folder):
    engine, target = Engine(), Target(str(tiny_llama_folder))
    request = parse_chat({"model": "m", "messages": QUESTION, "stream": True, "seed": 1, "max_tokens": 900})
    started = time.monotonic()
    answer = engine.submit(target, request, lambda choice, piece: False).result()
    assert answer.choices[0].finish == "cancelled"
    assert answer.choices[0].num_tokens < 50
    assert time.monotonic() - started < 30
    engine.close()


@pytest.mark.parametrize(
    ("parse", "body", "param"),
    [
        (parse_chat, {"messages": QUESTION, "temperature": 3}, "temperature"),
        (parse_chat, {"messages": QUESTION, "n": 0}, "n"),
        (parse_chat, {"messages": QUESTION, "n": True}, "n"),
        (parse_chat, {"messages": QUESTION, "logprobs": True}, "logprobs"),
        (parse_chat, {"messages": QUESTION, "response_format": {"type": "json_object"}}, "response_format"),
        (parse_chat, {"messages": QUESTION, "tool_choice": "required"}, "tool_choice"),
        (parse_chat, {"messages": QUESTION, "max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        (parse_chat, {"messages": QUESTION, "temprature": 1}, "temprature"),
        (parse_chat, {"messages": QUESTION, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
        (parse_chat, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (parse_chat, {"messages": [*QUESTION, {"role": "assistant", "content": "x"}]}, "messages[1]"),
        (parse_chat, {"messages": []}, "messages"),
        (parse_chat, {}, "messages"),
        (parse_chat, {"messages": QUESTION, "tools": [{"type": "function"}]}, "tools[0].function"),
        (parse_completion, {"prompt": [1, 2]}, "prompt"),
        (parse_completion, {"prompt": "x", "echo": True}, "echo"),
        (parse_completion, {"prompt": ["x"] * 17}, "n"),
        (parse_response, {"input": []}, "input"),
        (parse_response, {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        (parse_response, {"input": [{"type": "reasoning"}]}, "input[0].type"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_field(parse, body, param):
    with pytest.raises(RequestError) as error:
        parse(body | {"model": "m"})
    assert error.value.param == param


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def test_tools_of_a_model_whose_template_has_none_are_a_400(ask):
    status, answer = ask(messages=QUESTION, tools=TOOLS)
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert "renders no tool definitions" in answer["error"]["message"]


def test_a_call_is_answered_as_one_whole_and_in_a_stream():
    request = parse_chat({"model": "m", "messages": QUESTION, "tools": TOOLS, "stream": True})
    said = Answer((Choice('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "stop", 9),), 5)
    (choice,) = ChatAnswer("m", request).whole(said)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    stream = ChatAnswer("m", request)
    assert list(stream.piece(0, "<tool")) == []
    deltas = [json.loads(event[6:])["choices"][0] for event in list(stream.last(said))[:-1]]
    assert deltas[0]["delta"]["tool_calls"][0]["index"] == 0
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_a_call_is_an_item_of_a_response():
    request = parse_response({"model": "m", "input": "x", "tools": TOOLS})
    said = Answer((Choice('{"name": "f", "arguments": {}}', "stop", 9),), 5)
    (item,) = ResponseAnswer("m", request).whole(said)["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "f", "{}")


def test_fields_that_ask_for_nothing_are_taken():
    request = parse_chat(
        {"model": "m", "messages": QUESTION, "logprobs": False, "frequency_penalty": 0, "user": "u", "tools": None}
    )
    assert (request.temperature, request.num_choices, request.max_tokens) == (1.0, 1, None)


@pytest.mark.parametrize(
    ("text", "left", "arguments"),
    [
        ('One moment. <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "One moment.", ['{"a": 1}']),
        ('[{"name": "f", "arguments": "{\\"a\\": 1}"}, {"name": "g"}]', "", ['{"a": 1}', "{}"]),
        ('{"name": "f", "parameters": {"a": 1}}', "", ['{"a": 1}']),
        ('{"name": "h", "arguments": {}}', '{"name": "h", "arguments": {}}', []),
        ('<tool_call>{"name": "f", </tool_call>', '<tool_call>{"name": "f", </tool_call>', []),
        ("f is a function", "f is a function", []),
    ],
)
def test_calls_are_read_from_every_form_and_only_of_offered_functions(text, left, arguments):
    found, calls = tool_calls(text, ("f", "g"))
    assert found == left
    assert [call.arguments for call in calls] == arguments
    assert tool_calls(text, ()) == (text, ())
