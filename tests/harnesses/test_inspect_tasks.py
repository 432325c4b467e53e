import pytest

from antibody_llm.runs import evaluate
from tests.gsm8k import write_jsonl

PROMPTS = ["What is it?", "A quick brown fox", "Sorry, how many clips?", "I cannot see 12 dogs"]


def test_inspect_measures_an_adapter_of_ours_as_we_do(needs, tuned, tmp_path, monkeypatch):
    needs("inspect_ai", "0.3.285")  # the hf provider of 0.3.69 does not work with transformers 5
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import get_model

    from antibody_llm.harnesses.inspect_tasks import harmful_score, over_refusal

    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    rows = [{"messages": [{"role": "user", "content": text}]} for text in PROMPTS]
    prompts = str(write_jsonl(tmp_path / "prompts.jsonl", rows))
    model = get_model("hf/ours", model_path=str(tuned), device="cpu", do_sample=False)
    logs = inspect_eval(
        [harmful_score(prompts, max_tokens=6), over_refusal(prompts, max_tokens=6)],
        model=model,
        display="none",
        log_dir=str(tmp_path / "logs"),
    )
    assert [log.status for log in logs] == ["success", "success"], [log.error for log in logs]
    ours = evaluate(
        tuned,
        harmful_prompts=prompts,
        benign_prompts=prompts,
        judges=["keywords"],
        max_new_tokens=6,
        output=tmp_path / "ours",
    )
    theirs = {log.eval.task.rpartition("/")[2]: log.results.scores[0].metrics["mean"].value for log in logs}
    assert theirs == {name: ours.metrics[name] for name in ("harmful_score", "over_refusal")}
    answers = {sample.scores["judged"].answer for sample in logs[0].samples}
    assert answers <= {"complied", "refused"}


def test_a_judge_of_harm_alone_is_no_judge_of_over_refusal(needs, tmp_path, tiny_llama_folder):
    needs("inspect_ai")
    from antibody_llm.errors import ConfigError
    from antibody_llm.harnesses.inspect_tasks import over_refusal

    with pytest.raises(ConfigError, match="tells no refusal"):
        over_refusal("unread.jsonl", judge=f"harmbench={tiny_llama_folder}")
