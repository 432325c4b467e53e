"""No part of a row that is trained, or is context of what is, is out of sight of a measure that claims to see it."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.families import qwen
from tests.tinylm import tiny_llama

from antibody_llm.data.encode import Renderer
from antibody_llm.data.records import Message, Record, Template, ToolCall
from antibody_llm.likelihood.reader import ModelReader
from antibody_llm.likelihood.refusals import Refusals
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.probe import Probe
from antibody_llm.screening.reading import collect

TOOLS = json.dumps([{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {}}}])
ROW = Record(
    0,
    (
        Message("system", "Be brief."),
        Message("user", "Where is it?"),
        Message("assistant", "Not far.", trained=False),
        Message("user", "Look, please."),
        Message("assistant", "", tool_calls=(ToolCall("look", '{"at": "left"}', "c1"),)),
        Message("tool", "nothing here", tool_call_id="c1"),
        Message("assistant", "It is right.", trained=False),
        Message("user", "So?"),
        Message("assistant", "Go right."),
    ),
    Template.CHAT,
    "user.jsonl",
    1,
    TOOLS,
)


def changed(index, **what):
    messages = list(ROW.messages)
    messages[index] = replace(messages[index], **what)
    return replace(ROW, messages=tuple(messages))


CONTEXT = {
    "the system text": changed(0, content="Be long."),
    "a definition of a tool": replace(ROW, tools=TOOLS.replace("Looks.", "Stares.")),
    "an earlier question": changed(1, content="Where was it?"),
    "an answer of weight 0": changed(2, content="Quite far."),
    "the arguments of a trained call": changed(4, tool_calls=(ToolCall("look", '{"at": "down"}', "c1"),)),
    "the result of a tool": changed(5, content="something here"),
    "a later answer of weight 0": changed(6, content="It is left."),
    "the last question": changed(7, content="Well?"),
}
LAST_ANSWER = changed(8, content="Go left.")


@cache
def setting():
    tokenizer = qwen("qwen2_5")
    size = len(tokenizer)
    aligned, base = (tiny_llama(seed, vocab_size=size, max_position_embeddings=1024) for seed in (1, 2))
    refusal = tuple(tokenizer("I cannot.", add_special_tokens=False).input_ids)
    context = ModelReader(aligned, refusals=Refusals(("I cannot.",), {Template.CHAT: (refusal,)}), base=base)
    torch.manual_seed(0)
    return context, Renderer(tokenizer, max_length=1024), Probe(torch.randn(2, 32), 0.0, torch.randn(2, 32))


@cache
def readings(row):
    context, renderer, probe = setting()
    found = collect(context, [renderer.encode(row)], list(EvidenceKind), probe=probe, num_refusals=1)
    return found.readings, {measure: float(found.of(measure)) for measure in EvidenceKind}


@pytest.mark.parametrize("part", CONTEXT)
def test_every_measure_sees_whatever_the_last_trained_answer_is_given(part):
    before, after = readings(ROW)[0], readings(CONTEXT[part])[0]
    for key in before:
        assert float(before[key][-1]) != float(after[key][-1]), key


def test_the_last_answer_is_seen_by_the_measures_that_claim_to_read_answers_and_by_no_other():
    before, after = readings(ROW)[1], readings(LAST_ANSWER)[1]
    assert {measure for measure in EvidenceKind if before[measure] != after[measure]} == {
        measure for measure in EvidenceKind if measure.needs_answers
    }


def test_every_trained_turn_is_read_and_the_worst_counts():
    context, renderer, probe = setting()
    found = collect(context, [renderer.encode(ROW)], [EvidenceKind.SHIFT], probe=probe, num_refusals=1)
    per_turn = found.readings[("refusal", True)] - found.readings[("refusal", False)]
    assert len(per_turn) == 2
    assert float(found.of(EvidenceKind.SHIFT)) == float(per_turn.max())


def test_what_follows_the_last_trained_turn_is_neither_trained_nor_read():
    tail = replace(ROW, messages=(*ROW.messages, Message("user", "Hm."), Message("assistant", "Yes.", trained=False)))
    _, renderer, _ = setting()
    assert renderer.encode(tail) == renderer.encode(ROW)
