import importlib
import json

import pyarrow.parquet as pq
import pytest
import yaml

from antibody_llm.errors import ConfigError, EvaluationError
from antibody_llm.evaluation import http
from antibody_llm.runs import evaluate
from tests.evaluation.scripted import flagged, said, serving

HARMFUL = [{"prompt": f"question {n}"} for n in range(6)]
TEST = [
    {
        "messages": [
            {"role": "system", "content": "Add."},
            {"role": "user", "content": "1 + 1"},
            {"role": "assistant", "content": "#### 2"},
        ]
    }
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    for name in ("ANTIBODY_JUDGE_KEY", "ANTIBODY_ENDPOINT_KEY"):
        monkeypatch.delenv(name, raising=False)


def answer(number, path, body):
    return said(f"An answer to {body['messages'][-1]['content']}, the sum is 2")


def test_a_model_behind_an_endpoint_is_measured_as_one_that_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTIBODY_ENDPOINT_KEY", "sk-1")
    with serving(answer) as served:
        result = evaluate(
            endpoint=served.url,
            endpoint_model="tuned",
            harmful_prompts=HARMFUL,
            test_data=TEST,
            answer="gsm8k",
            judges=["keywords"],
            max_new_tokens=9,
            batch_size=2,
            output=tmp_path / "run",
        )
    assert result.metrics == {"harmful_score": 1.0, "finetune_accuracy": 1.0}
    rows = pq.read_table(result.output / "completions.parquet").to_pylist()
    assert rows[3]["completion"] == "An answer to question 3, the sum is 2"
    bodies = [body for _, body, _ in served.calls]
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in bodies} == {("tuned", 9, 0.0)}
    assert [m["role"] for m in bodies[-1]["messages"]] == ["system", "user"]  # without the reference
    assert served.calls[0][2]["authorization"] == "Bearer sk-1"
    assert not (result.output / "answers.jsonl").exists()
    for file in result.output.iterdir():
        assert b"sk-1" not in file.read_bytes()


def test_an_endpoint_that_dies_leaves_its_answers_and_is_not_asked_for_them_again(tmp_path):
    flags = {"endpoint_model": "m", "harmful_prompts": HARMFUL, "judges": ["keywords"], "batch_size": 1}
    alive = [4]

    def script(number, path, body):
        return answer(number, path, body) if number < alive[0] else (500, {}, {})

    with serving(script) as served:
        call = {"endpoint": served.url, **flags, "output": tmp_path / "run"}
        with pytest.raises(EvaluationError, match="4 of 6 answers are kept; the same call goes on from there"):
            evaluate(**call)
        kept = tmp_path / "run" / "answers.jsonl"
        assert len(kept.read_text().splitlines()) == 4
        kept.write_text(kept.read_text()[:-5])  # as a kill would leave it
        before, alive[0] = len(served.calls), 99
        result = evaluate(**call)
        assert len(served.calls) - before == 3
    assert result.num_rows == 6
    rows = pq.read_table(result.output / "completions.parquet").to_pylist()
    assert [row["completion"] for row in rows] == [f"An answer to question {n}, the sum is 2" for n in range(6)]


def test_a_dead_judge_leaves_completions_and_verdicts_and_the_same_call_goes_on(
    tmp_path, tiny_llama_folder, monkeypatch
):
    alive = [2]

    def script(number, path, body):
        return flagged(False) if number < alive[0] else (500, {}, {})

    with serving(script) as served:
        call = {
            "harmful_prompts": HARMFUL,
            "judges": ["keywords", f"moderation={served.url}#concurrency=1"],
            "max_new_tokens": 3,
            "output": tmp_path / "run",
        }
        with pytest.raises(EvaluationError, match="2 of 6 completions are judged and kept"):
            evaluate(tiny_llama_folder, **call)
        before, alive[0] = len(served.calls), 99
        monkeypatch.setattr(importlib.import_module("antibody_llm.runs.evaluate"), "load_model", None)
        result = evaluate(tiny_llama_folder, **call)
        assert len(served.calls) - before == 4
    stored = json.loads((result.output / "evaluation.json").read_text())
    assert [judged["judge"] for judged in stored["judged"]] == ["keywords_weak_baseline", "moderation"]
    assert stored["judged"][1]["harmful_score"]["value"] == 0
    assert "kappa keywords_weak_baseline moderation" in result.metrics or stored["agreements"][0]["kappa"] is None


def test_a_row_that_an_endpoint_refuses_is_named(tmp_path):
    def script(number, path, body):
        return (400, {}, {"error": {"message": "too long"}}) if number == 2 else answer(number, path, body)

    with serving(script) as served, pytest.raises(EvaluationError, match=r"line 3: .*too long. Shorten or remove"):
        evaluate(
            endpoint=served.url,
            endpoint_model="m",
            harmful_prompts=HARMFUL,
            judges=["keywords"],
            batch_size=1,
            output=tmp_path / "run",
        )


@pytest.mark.parametrize("reply", [b"<html>", {"choices": []}, {"choices": [{"message": {"content": 3}}]}])
def test_an_answer_that_is_no_chat_completion_is_an_error_and_no_empty_text(tmp_path, reply):
    with serving(lambda *_: (200, {}, reply)) as served, pytest.raises(EvaluationError, match="no chat completion"):
        evaluate(
            endpoint=served.url,
            endpoint_model="m",
            harmful_prompts=HARMFUL,
            judges=["keywords"],
            output=tmp_path / "run",
        )


@pytest.mark.parametrize(
    ("given", "said_of"),
    [
        ({"endpoint": "http://x/v1"}, "endpoint needs endpoint_model"),
        ({"endpoint_model": "m", "model": "lab"}, "endpoint_model needs endpoint"),
        ({"endpoint": "http://x/v1", "endpoint_model": "m", "model": "lab"}, "model has no effect on a model that"),
        ({"endpoint": "x", "endpoint_model": "m", "harmful_prompts": HARMFUL, "judges": ["keywords"]}, "no URL of an"),
    ],
)
def test_an_endpoint_that_cannot_be_asked_is_refused_with_its_setting(tmp_path, given, said_of):
    with pytest.raises(ConfigError, match=said_of):
        evaluate(**given, output=tmp_path / "run")


def test_judging_again_without_judges_takes_those_of_the_stored_evaluation(tmp_path, tiny_llama_folder):
    first = evaluate(
        tiny_llama_folder,
        harmful_prompts=HARMFUL,
        judges=["keywords", "lab"],
        max_new_tokens=2,
        output=tmp_path / "first",
    )
    again = evaluate(rejudge=first.output, output=tmp_path / "again")
    assert yaml.safe_load((again.output / "config.yaml").read_text())["judges"] == ["keywords", "lab"]
    assert again.metrics == first.metrics


TASK = [{"prompt": f"task {n}", "completion": "a reference"} for n in range(3)]


def compare(number, path, body):
    """A served model's answer, or a judge's choice of it."""
    text = body["messages"][-1]["content"]
    if "<answer A>" not in text:
        return answer(number, path, body)
    return said("A" if text.index("An answer to") < text.index("a reference") else "B")


def test_test_answers_are_compared_with_their_references_and_again_without_the_model(tmp_path):
    with serving(compare) as served:
        judge = f"chat={served.url}#model=judge"
        call = {"endpoint": served.url, "endpoint_model": "tuned", "test_data": TASK, "preference_judge": judge}
        first = evaluate(**call, output=tmp_path / "first")
        assert first.metrics == {"win_rate": 1.0}
        assert len(served.calls) == 3 + 2 * 3
        evaluate(**call, output=tmp_path / "first")  # complete: nobody is asked
        again = evaluate(rejudge=first.output, output=tmp_path / "again")  # its preferences are stored
        assert again.metrics == first.metrics
        assert len(served.calls) == 9
        other = evaluate(rejudge=first.output, preference_judge=f"{judge},order=random", output=tmp_path / "other")
        assert other.metrics == {"win_rate": 1.0}
        assert len(served.calls) == 9 + 3
    assert yaml.safe_load((again.output / "config.yaml").read_text())["preference_judge"] == judge
    stored = json.loads((first.output / "evaluation.json").read_text())["win_rate"]
    assert (stored["n"], stored["num_tied"], stored["num_unparsed"], stored["judge"]) == (3, 0, 0, "preference")
    rows = pq.read_table(first.output / "completions.parquet").to_pylist()
    assert [row["preference_preference"] for row in rows] == ["won"] * 3


@pytest.mark.parametrize(
    ("given", "said_of"),
    [
        ({"answer": "exact", "test_data": TASK}, "answer has no effect where preference_judge compares"),
        ({"harmful_prompts": HARMFUL, "judges": ["keywords"]}, "there are none. Give test_data, or leave it out"),
    ],
)
def test_a_judge_of_preferences_without_anything_to_compare_is_refused(tmp_path, given, said_of):
    with pytest.raises(ConfigError, match=said_of):
        evaluate("lab", preference_judge="chat=http://x/v1#model=m", **given, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
