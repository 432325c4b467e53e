import json

import yaml


def test_an_adapter_of_ours_is_evaluated_by_lm_eval_unchanged(needs, tuned, tiny_folder, tmp_path):
    needs("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    data = tmp_path / "sums.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."}) + "\n" for n in range(4))
    )
    task = {
        "task": "local_sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["It is 0.", "It is 2.", "It is 4.", "It is 6."],
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local_sums.yaml").write_text(yaml.safe_dump(task))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_folder("qwen2")), "peft": str(tuned), "dtype": "float32"},
        tasks=["local_sums"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )
    assert found["results"]["local_sums"]["acc,none"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["n-samples"]["local_sums"]["effective"] == 4
