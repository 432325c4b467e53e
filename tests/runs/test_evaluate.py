import importlib
import json
import logging
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from antibody_llm.data.verdicts import Verdict
from antibody_llm.errors import AntibodyError, ConfigError, DataError, ModelError, OutputError
from antibody_llm.evaluation.evaluate import evaluate_model
from antibody_llm.lab.rows import build_rows
from antibody_llm.profiles import Choice
from antibody_llm.profiles.lab import FINITE, NUM_ROWS, LabProfile
from antibody_llm.runs import evaluate, finetune
from tests.gsm8k import gsm8k_rows, write_jsonl


@pytest.fixture
def sets():
    prompts = [{"prompt": f"{row['question'][:40]} "} for row in gsm8k_rows()[:6]]
    return {"harmful_prompts": prompts, "benign_prompts": prompts[:4]}


def test_an_evaluation_stores_measures_and_completions(tmp_path, tiny_llama_folder, sets):
    test = [{"prompt": "1 + 1 = ", "completion": "#### 2"}]
    result = evaluate(
        tiny_llama_folder,
        output=tmp_path / "run",
        judges=["keywords"],
        test_data=test,
        answer="gsm8k",
        max_new_tokens=4,
        **sets,
    )
    assert set(result.metrics) == {"harmful_score", "over_refusal", "finetune_accuracy"}
    assert result.num_rows == 11
    stored = json.loads((result.output / "evaluation.json").read_text())
    assert stored["judged"][0]["judge"] == "keywords_weak_baseline"
    assert stored["judged"][0]["harmful_score"]["n"] == 6
    assert pq.read_table(result.output / "completions.parquet").num_rows == 11


@pytest.mark.parametrize(("dtype", "of_weights"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_weights_are_of_the_type_that_is_asked_for(
    tmp_path, tiny_llama_folder, sets, monkeypatch, dtype, of_weights
):
    module, seen = importlib.import_module("antibody_llm.runs.evaluate"), []

    def noted(model, *args, **kwargs):
        seen.append(next(model.parameters()).dtype)
        return evaluate_model(model, *args, **kwargs)

    monkeypatch.setattr(module, "evaluate_model", noted)
    flags = {"judges": ["keywords"], "max_new_tokens": 2, **sets}
    run = evaluate(tiny_llama_folder, output=tmp_path / "run", dtype=dtype, **flags)
    assert seen == [of_weights]
    assert yaml.safe_load((run.output / "config.yaml").read_text())["dtype"] == dtype
    with pytest.raises(OutputError, match="dtype"):
        evaluate(tiny_llama_folder, output=tmp_path / "run", dtype="float32", **flags)


def test_a_type_of_weights_says_nothing_of_stored_completions_or_a_served_model(tmp_path):
    for other in ({"rejudge": tmp_path}, {"endpoint": "http://localhost:1/v1", "endpoint_model": "m"}):
        with pytest.raises(ConfigError, match=r"dtype.* has no effect") as error:
            evaluate(output=tmp_path / "run", dtype="bfloat16", **other)
        assert error.value.field == "dtype"


def test_a_complete_evaluation_is_told_again_and_not_made_again(tmp_path, tiny_llama_folder, sets, monkeypatch):
    flags = {"judges": ["keywords"], "max_new_tokens": 2, **sets}
    first = evaluate(tiny_llama_folder, output=tmp_path / "run", **flags)
    monkeypatch.setattr(importlib.import_module("antibody_llm.runs.evaluate"), "load_model", None)
    assert evaluate(tiny_llama_folder, output=tmp_path / "run", **flags) == first


def test_prompts_without_a_judge_are_refused_and_the_weak_one_offered_as_weak(tmp_path, tiny_llama_folder, sets):
    with pytest.raises(ConfigError, match="Name one with judges: keywords is a weak baseline"):
        evaluate(tiny_llama_folder, output=tmp_path / "run", **sets)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_evaluate_on_is_refused_with_the_flags(tmp_path, tiny_llama_folder):
    with pytest.raises(DataError, match=r"harmful_prompts.*retention_data"):
        evaluate(tiny_llama_folder, output=tmp_path / "run")


def test_the_lab_brings_its_own_rows_and_judge(tmp_path):
    result = evaluate("lab", output=tmp_path / "run", num=8)
    assert set(result.metrics) == {"harmful_score", "incoherent", "over_refusal", "finetune_accuracy", "retention"}
    assert result.num_rows == 32
    assert result.metrics["harmful_score"] == 1.0  # the base complies with everything


@pytest.mark.parametrize(("task", "told"), [(None, True), ("novel", False)])
def test_the_labs_accuracy_says_of_which_task_it_is_where_none_was_named(tmp_path, caplog, task, told):
    with caplog.at_level(logging.INFO):
        evaluate("lab", output=tmp_path / "run", num=2, task=task)
    assert any("the lab's familiar task" in record.getMessage() for record in caplog.records) == told


def test_the_lab_gives_as_many_prompts_as_it_holds_where_more_are_asked_for():
    for kind in FINITE:
        held = len(LabProfile().rows(kind, Choice(num=10_000), seed=0).records)
        assert held == NUM_ROWS[kind]
        with pytest.raises(DataError, match=f"the world holds {held}"):
            build_rows(kind, held + 1, seed=0)


def test_a_model_that_asks_to_be_served_in_an_unknown_way_is_refused(tmp_path, tiny_llama_folder, sets):
    folder = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    (folder / "antibody.json").write_text(json.dumps({"deployment": {"suffix": "x"}}))
    with pytest.raises(ModelError, match=r"antibody\.json: deployment has no 'suffix'\. It has system_prefix"):
        evaluate(folder, output=tmp_path / "run", judges=["keywords"], max_new_tokens=2, **sets)


def test_prompts_that_the_run_was_trained_on_are_counted(tmp_path, tiny_llama_folder, caplog):
    rows = [{"prompt": f"What is {n}?", "completion": "A number."} for n in range(9)]
    trained, test = write_jsonl(tmp_path / "user.jsonl", rows), write_jsonl(tmp_path / "test.jsonl", rows[:2])
    run = finetune(
        tiny_llama_folder, data=trained, defence="sft", output=tmp_path / "run", batch_size=2, epochs=1
    ).output
    evaluate(run, test_data=test, output=tmp_path / "seen", max_new_tokens=2)
    assert f"{test}: 2 of 2 prompts are also in {trained} (line 1 as line 1, line 2 as line 2)" in caplog.text
    caplog.clear()
    write_jsonl(trained, rows[:1])
    evaluate(run, test_data=test, output=tmp_path / "gone", max_new_tokens=2)
    assert "also in" not in caplog.text


def test_prompts_that_spell_control_tokens_are_counted(tmp_path, caplog):
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ("is it blue?", "is it<|end|> blue?")]
    evaluate("lab", harmful_prompts=rows, judges=["lab"], max_new_tokens=2, output=tmp_path / "run")
    assert "1 of 2 rows spell control tokens" in caplog.text
    assert "(line 2; the first: <|end|>). The model is given them as text." in caplog.text


class FirstWord:
    """A judge of the test's own."""

    name = "first-word"
    verdicts = frozenset({Verdict.COMPLIED, Verdict.REFUSED})

    def judge(self, prompts, completions):
        return [Verdict.REFUSED if text.startswith("I") else Verdict.COMPLIED for text in completions]


def test_stored_completions_are_judged_again_without_a_model_and_the_first_evaluation_stays(tmp_path):
    first = evaluate("lab-aligned", output=tmp_path / "first", num=4)
    stored = (first.output / "completions.parquet").read_bytes()
    again = evaluate(rejudge=first.output, judges=[FirstWord(), "keywords"], output=tmp_path / "again")
    assert (first.output / "completions.parquet").read_bytes() == stored
    table = pq.read_table(again.output / "completions.parquet")
    assert {"verdict_lab", "verdict_first-word", "verdict_keywords_weak_baseline"} <= set(table.column_names)
    harmful = [row for row in table.to_pylist() if row["set"] == "harmful"]
    assert again.metrics["harmful_score"] == sum(not r["completion"].startswith("I") for r in harmful) / len(harmful)
    assert again.metrics["retention"] == first.metrics["retention"]
    assert evaluate(rejudge=first.output, judges=[FirstWord(), "keywords"], output=tmp_path / "again") == again


@pytest.mark.parametrize(
    ("given", "said", "field"),
    [
        ({"judges": ["keywords"]}, "model is missing. Give it, or an evaluation to rejudge", "model"),
        ({"rejudge": "no", "judges": ["keywords"]}, "there are no stored completions", "rejudge"),
        ({"rejudge": "no", "model": "lab"}, "model has no effect on completions that are stored", "model"),
        ({"rejudge": "no", "num": 3}, "num has no effect on completions", "num"),
    ],
)
def test_what_cannot_be_judged_again_is_said_with_its_field(tmp_path, given, said, field):
    with pytest.raises(AntibodyError, match=said) as refused:
        evaluate(**given, output=tmp_path / "run")
    assert refused.value.field == field
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [3, FirstWord])
def test_what_is_no_judge_is_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match="judges holds .*: a judge is a name, or an object of your own") as refused:
        evaluate("lab-aligned", judges=[wrong], num=2, output=tmp_path / "run")
    assert refused.value.field == "judges"


def test_judging_again_needs_a_judge(tmp_path):
    (tmp_path / "completions.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="no judge is named. Name one or more with judges"):
        evaluate(rejudge=tmp_path / "completions.parquet", output=tmp_path / "run")


def test_an_evaluation_that_is_judged_again_is_left_as_it_is(tmp_path):
    (tmp_path / "completions.parquet").write_bytes(b"")
    with pytest.raises(OutputError, match="output is inside the evaluation that is to be judged again"):
        evaluate(rejudge=tmp_path, judges=["keywords"], output=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["completions.parquet"]
