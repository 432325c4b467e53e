from pathlib import Path

import pytest

from antibody_llm.data.duplicates import normalise, overlap, repeats
from antibody_llm.data.formats import load_prompts, load_records
from antibody_llm.data.records import Message, Record, Template, ToolCall

CASE = Path(__file__).parent / "cases" / "37-duplicates"


def chat(line: int, *texts: str, **more) -> Record:
    messages = tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts))
    return Record(line - 1, messages, Template.CHAT, "rows", line, **more)


def test_repeats_are_counted_exactly_and_after_normalisation():
    found = repeats(load_records(CASE / "train.jsonl"))
    assert found.exact == [(line, line - 6) for line in range(7, 13)]
    assert found.normalised == [(13, 3)]
    assert str(found) == (
        "6 of 17 rows repeat an earlier one (line 7 as line 1, line 8 as line 2, line 9 as line 3, line 10 as line 4, "
        "line 11 as line 5, ...); 1 of 17 differ from an earlier one only in case, white space or punctuation at the "
        "ends (line 13 as line 3)"
    )
    assert repeats(load_records(CASE / "train.jsonl"), normalised=False).normalised == []


def test_rows_that_do_not_repeat_are_not_reported():
    rows = [chat(1, "a", "b"), chat(2, "a", "c"), chat(3, "b", "a"), chat(4, "a", "b", "a", "b"), chat(5, "", "ab")]
    assert str(repeats(rows)) == ""


@pytest.mark.parametrize(
    "text", ["open the door", "Open  the\n door", " “Open the door!” ", "ＯＰＥＮ the door", "open the door..."]
)
def test_copies_by_hand_normalise_to_one_text(text):
    assert normalise(text) == "open the door"


@pytest.mark.parametrize("text", ["open the doors", "do open the door", "open-the door", "open the door 2", "-1", "?"])
def test_texts_that_differ_in_more_stay_different(text):
    assert normalise(text) not in ("open the door", "")


def test_repeats_within_one_line_are_counted(tmp_path):
    (tmp_path / "rows.json").write_text('[{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}]')
    assert repeats(load_records(tmp_path / "rows.json")).exact == [(1, 1)]


def test_prompts_that_are_trained_and_validated_are_found_whatever_their_answers():
    training, validation = (load_records(CASE / f"{name}.jsonl") for name in ("train", "validation"))
    shared = overlap(training, validation, names=("train", "validation"))
    assert shared.exact == ((1, 1), (2, 2), (3, 3))
    assert str(shared) == (
        "validation: 3 of 6 prompts are also in train (line 1 as line 1, line 2 as line 2, line 3 as line 3)"
    )
    shared = overlap([chat(1, "Open it.", "a")], [chat(4, "open it", "b"), chat(5, "c", "d")], names=("x", "y"))
    assert (shared.exact, shared.normalised) == ((), ((4, 1),))
    assert str(overlap([chat(1, "a", "b")], [chat(1, "b", "a")], names=("x", "y"))) == ""


def test_prompts_without_an_answer_overlap_too(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    prompts = load_prompts(tmp_path / "prompts.jsonl")
    assert overlap([chat(7, "a", "b")], prompts, names=("x", "y")).exact == ((1, 7),)


def test_calls_tools_and_reasoning_tell_rows_apart():
    def calling(line: int, arguments: str, **more) -> Record:
        turn = Message("assistant", "", tool_calls=(ToolCall("open", arguments, f"id{line}"),), **more)
        return Record(line - 1, (Message("user", "a"), turn), Template.CHAT, "rows", line)

    assert str(repeats([calling(1, "{}"), calling(2, '{"a": 1}')])) == ""
    assert repeats([calling(1, "{}"), calling(2, "{}")]).normalised == [(2, 1)]  # but for the id
    assert str(repeats([chat(1, "a", "b"), chat(2, "a", "b", tools="[1]")])) == ""
    assert repeats([chat(1, "a", "b"), calling(2, "{}", reasoning="x"), calling(2, "{}", reasoning="y")]).exact == []
