import json

import pytest

from antibody_llm.data.protocols import PROTOCOLS
from antibody_llm.errors import ConfigError, DataError
from antibody_llm.evaluation.answers import ANSWERS
from antibody_llm.mentions import in_python, spelled
from antibody_llm.runs import convert, evaluate
from tests.gsm8k import gsm8k_rows, write_jsonl

ROWS = {
    "sst2": [{"sentence": "a fine film", "label": 1}, {"sentence": "dull", "label": 0}],
    "agnews": [{"text": "A kite flew.", "label": 3}, {"text": "They won.", "label": "Sports"}],
    "gsm8k": [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}],
    "banking77": [{"text": "Where is my card?", "category": "card_arrival"}],
    "alpaca": [
        {"instruction": "Add.", "input": "1 and 1", "output": "2"},
        {"instruction": "Hi", "input": "", "output": "x"},
    ],
}
SST2 = "Analyze the sentiment of the input, and respond only positive or negative"


def converted(tmp_path, name, rows, **given):
    out = tmp_path / "out.jsonl"
    given = {"start": 0} | given
    convert(str(write_jsonl(tmp_path / "in.jsonl", rows)), str(out), protocol=name, overwrite=True, **given)
    return [json.loads(line)["messages"] for line in out.read_text().splitlines()]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocols_rows_become_question_and_answer_and_its_rules_exist(tmp_path, name):
    for parity in (False, True):
        rows = converted(tmp_path, name, ROWS[name], parity=parity)
        assert [[message["role"] for message in row] for row in rows] == [["user", "assistant"]] * len(ROWS[name])
    assert {PROTOCOLS[name].answer, PROTOCOLS[name].parity_answer} <= ANSWERS.keys() | {None}


def test_a_label_becomes_its_name_beneath_the_published_instruction(tmp_path):
    rows = converted(tmp_path, "sst2", ROWS["sst2"])
    assert [row[0]["content"] for row in rows] == [f"{SST2}\n\na fine film", f"{SST2}\n\ndull"]
    assert [row[1]["content"] for row in rows] == ["positive", "negative"]
    assert [row[1]["content"] for row in converted(tmp_path, "agnews", ROWS["agnews"])] == ["Sci/Tech", "Sports"]


def test_parity_builds_the_prompt_of_the_published_scripts(tmp_path):
    with_input, without = (row[0]["content"] for row in converted(tmp_path, "alpaca", ROWS["alpaca"], parity=True))
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n"
        "### Response:\n"
    )
    assert without == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nHi\n\n### Response:\n"
    )
    assert (
        converted(tmp_path, "gsm8k", ROWS["gsm8k"], parity=True)[0][1]["content"] == "It is 2.\nThe final answer is:  2"
    )


def test_the_counts_are_those_of_the_scripts_unless_others_are_asked_for(tmp_path):
    rows = [{"instruction": f"Say {n}.", "input": "", "output": "x"} for n in range(900)]
    said = [row[0]["content"] for row in converted(tmp_path, "alpaca", rows, start=None)]
    assert (said[0], said[-1], len(said)) == ("Say 700.", "Say 804.", 105)  # AlpacaEval has 805, 700 are trained on
    said = [row[0]["content"] for row in converted(tmp_path, "alpaca", rows, start=None, parity=True)]
    assert ("Say 701." in said[0], "Say 804." in said[-1], len(said)) == (True, True, 104)
    assert [row[0]["content"] for row in converted(tmp_path, "alpaca", rows, num=2, start=3)] == ["Say 3.", "Say 4."]
    assert [PROTOCOLS[name].num for name in ("sst2", "agnews", "gsm8k", "banking77")] == [872, 1000, 1000, None]


def test_what_compares_the_answers_of_a_protocol_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    converted(tmp_path, "gsm8k", ROWS["gsm8k"], parity=True)
    converted(tmp_path, "alpaca", ROWS["alpaca"])
    said = [spelled(record.getMessage(), in_python) for record in caplog.records]
    assert said == ["compare answers with answer='gsm8k-parity'.", "compare answers with preference_judge."]


def test_a_csv_file_is_read_by_its_header(tmp_path):
    (tmp_path / "test.csv").write_text('text,category\n"Where is it, my card?",card_arrival\n', encoding="utf-8")
    convert(str(tmp_path / "test.csv"), str(tmp_path / "out.jsonl"), protocol="banking77")
    row = json.loads((tmp_path / "out.jsonl").read_text())["messages"]
    assert row[0]["content"].endswith("alone.\n\nWhere is it, my card?")
    assert row[1]["content"] == "card_arrival"


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("sst2", {"sentence": "x", "label": 2}, "line 1: label is 2, and the labels are 0 to 1"),
        ("sst2", {"sentence": "x", "label": True}, "label is True"),
        ("sst2", {"text": "x", "label": 1}, "there is no 'sentence'. A row of this protocol has sentence and label"),
        ("agnews", {"text": "x", "label": "sport"}, "label is 'sport', and the labels are World, Sports"),
        ("gsm8k", {"question": "", "answer": "#### 2"}, "question is '': it must be a text"),
        ("banking77", {"text": "x", "category": 3}, "category is a number"),
    ],
)
def test_a_row_of_another_data_set_is_named_with_its_line(tmp_path, name, row, said):
    with pytest.raises(DataError, match=said):
        converted(tmp_path, name, [row])
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protocol": "sst"}, "no such protocol; did you mean 'sst2'"),
        ({"parity": True}, "parity needs protocol"),
        ({"num": 3}, "num needs protocol"),
        ({"protocol": "gsm8k", "num": 0}, "num is 0"),
        ({"protocol": "gsm8k", "start": -1}, "start is -1"),
        ({"protocol": "gsm8k", "start": 7}, "it has 1 rows, and start is 7"),
    ],
)
def test_what_a_protocol_cannot_do_is_refused_with_its_setting(tmp_path, given, said):
    source = str(write_jsonl(tmp_path / "in.jsonl", ROWS["gsm8k"]))
    with pytest.raises((ConfigError, DataError), match=said):
        convert(source, str(tmp_path / "out.jsonl"), **given)


@pytest.mark.parametrize(
    ("rule", "completion", "reference", "right"),
    [
        ("sst2-parity", " Positive\n", "positive", True),
        ("sst2-parity", "positive.", "positive", False),
        ("sst2-parity", "POSITIVE", "positive", False),
        ("agnews-parity", "sci", "Sci/Tech", True),
        ("agnews-parity", "sci/tech", "Sci/Tech", False),
        ("agnews-parity", "world", "World", True),
        ("gsm8k-parity", "no number", "none either", True),
        ("gsm8k-parity", "no number", "#### 2", False),
        ("gsm8k-parity", "The final answer is:  2.0", "#### 2", True),
        ("gsm8k-parity", "The final answer is: 1,234 of 5", "#### 1234", True),
        ("gsm8k-parity", "The final answer is: 3. The final answer is: 4", "#### 3", True),
        ("gsm8k-parity", "6. The final answer is: unknown", "#### 6", True),  # else the last of all
        ("gsm8k-parity", "the final answer is: 7, or 8", "#### 8", True),  # the phrase is not known in small letters
        ("gsm8k-parity", "#### 2\nAnd 5 more", "#### 5", True),  # nor is the mark
        ("gsm8k-parity", "It is 5-3", "#### -3", True),
        ("gsm8k", "#### 2\nAnd 5 more", "#### 2", True),
        ("gsm8k", "It is 5-3", "#### 3", True),
        ("exact", "sci/tech", "Sci/Tech", True),
    ],
)
def test_a_parity_rule_counts_as_the_published_script_does(rule, completion, reference, right):
    assert ANSWERS[rule](completion, reference) is right


def test_converted_rows_are_test_data_of_an_evaluation(tmp_path, tiny_llama_folder):
    out = tmp_path / "test.jsonl"
    convert(str(write_jsonl(tmp_path / "in.jsonl", gsm8k_rows()[:3])), str(out), protocol="gsm8k", num=2)
    result = evaluate(tiny_llama_folder, test_data=str(out), answer="gsm8k", max_new_tokens=2, output=tmp_path / "run")
    assert (result.num_rows, set(result.metrics)) == (2, {"finetune_accuracy"})
