"""``antibody finetune --method dpo``."""

import json

from tests.gsm8k import write_jsonl


def test_the_command_line_has_method_and_beta(antibody, tmp_path, tiny_llama_folder):
    rows = [{"prompt": f"question {i}?", "chosen": f" better {i}", "rejected": f" worse {i}"} for i in range(8)]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    command = ["finetune", "--model", tiny_llama_folder, "--data", data, "--method", "dpo", "--defence", "sft"]
    command += ["--beta", "0.5", "--train", "max_steps=1", "--batch-size", "4", "--output", tmp_path / "run", "--json"]
    ended = antibody(*command)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["num_steps"] == 1
    refused = antibody(*command[:-3], "--defence", "antibody", "--output", tmp_path / "other")
    assert refused.code == 2
    assert "--defence sft or --defence antibody-posterior" in refused.stderr
