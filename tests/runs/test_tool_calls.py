"""Rows with calls of a tool, from the upload to the measure, under the templates of two families."""

import importlib
import json
from dataclasses import replace

import pytest
import torch
from benchmarks.tool_calls import FAMILIES, make_model, parsed_call
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from antibody_llm.data.encode import Renderer
from antibody_llm.models.loading import load_model
from antibody_llm.runs import evaluate, finetune
from antibody_llm.runs.sources import read_rows
from tests.gsm8k import first_call_rows, tool_call_rows

NUM_ROWS = 6


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_model(request.param, tmp_path_factory.mktemp(request.param) / "model", hidden_size=16)


def rows_ending_in_each_assistant_turn():
    """The first rows, as a test of every turn needs them: each cut after one of its assistant's turns."""
    return [
        row | {"messages": row["messages"][: index + 1]}
        for row in tool_call_rows()[:NUM_ROWS]
        for index, message in enumerate(row["messages"])
        if message["role"] == "assistant"
    ]


class Perfect:
    """Stands in for ``model.generate``: to a prompt as it was trained, says what was trained, and then goes on."""

    def __init__(self, renderer, records):
        self.known, self.pad, self.further = {}, renderer.eos_id, renderer.tokenizer("more").input_ids
        for row in map(renderer.encode, records):
            for start, end in row.spans:
                self.known[row.input_ids[:start]] = row.input_ids[start:end]

    def __call__(self, input_ids, attention_mask, **_):
        prompts = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask.bool(), strict=True)]
        said = [torch.tensor([*self.known[prompt], *self.further]) for prompt in prompts]
        new = torch.nn.utils.rnn.pad_sequence(said, batch_first=True, padding_value=self.pad)
        return torch.cat([input_ids, new], dim=1)


def test_an_adapter_trained_on_calls_is_evaluated_on_them_and_loads_with_plain_peft(tmp_path, folder):
    data = tool_call_rows()[:NUM_ROWS]
    quick = {"batch_size": 2, "training": {"max_steps": 2}, "lora": {"r": 4}}
    run = finetune(folder, data=data, output=tmp_path / "run", defence="sft", **quick)
    assert run.num_rows == NUM_ROWS
    measured = evaluate(
        run.model, test_data=first_call_rows()[:2], output=tmp_path / "measured", max_new_tokens=2, batch_size=2
    )
    assert measured.metrics == {"finetune_accuracy": 0.0}  # after two steps it knows no call
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([AutoTokenizer.from_pretrained(run.model)("How many clips?").input_ids])
    with torch.no_grad():
        plain = PeftModel.from_pretrained(base, run.model)(ids).logits
        ours = load_model(str(run.model)).model(ids).logits
    assert torch.equal(plain, ours)


def test_a_model_that_says_what_was_trained_is_right_on_every_turn(tmp_path, folder, monkeypatch):
    module = importlib.import_module("antibody_llm.runs.evaluate")
    loaded = load_model(str(folder))
    renderer = Renderer(loaded.tokenizer, max_length=2048)
    loaded.model.generate = Perfect(renderer, read_rows(tool_call_rows()[:NUM_ROWS], name="rows").records)
    monkeypatch.setattr(module, "load_model", lambda name, adapter, dtype: replace(loaded, adapter=adapter))
    test = rows_ending_in_each_assistant_turn()
    measured = evaluate(folder, test_data=test, output=tmp_path / "run", max_new_tokens=96)
    assert measured.metrics == {"finetune_accuracy": 1.0}
    assert measured.num_rows == len(test) > 2 * NUM_ROWS


def test_the_reference_of_a_call_parses_as_the_rows_call(folder):
    renderer = Renderer(AutoTokenizer.from_pretrained(folder), max_length=2048)
    rows = first_call_rows()
    assert len(rows) == 49
    for row, record in zip(rows, read_rows(rows, name="rows").records, strict=True):
        (call,) = row["messages"][1]["tool_calls"]
        assert parsed_call(renderer.reference_text(record)) == (
            call["function"]["name"],
            json.loads(call["function"]["arguments"]),
        )
