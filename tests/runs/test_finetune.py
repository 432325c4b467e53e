import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import make_defence
from antibody_llm.errors import ConfigError, DataError, OutputError, TrainingError
from antibody_llm.models.loading import load_model
from antibody_llm.runs import align, finetune
from antibody_llm.training.step import StepResult
from tests.gsm8k import gsm8k_rows, write_chat, write_prompt_completion

QUICK = {"training": {"max_steps": 2}, "learning_rate": 1e-2}


def rows(num=16):
    return [{"prompt": r["question"][:60], "completion": f" {r['answer'][:40]}"} for r in gsm8k_rows()[:num]]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("write", [write_chat, write_prompt_completion])
def test_gsm8k_trains_an_adapter_that_plain_peft_loads_to_the_same_logits(tmp_path, tiny_folder, kind, write):
    data = write(tmp_path / "gsm8k.jsonl")
    result = finetune(tiny_folder(kind), data=data, output=tmp_path / "run", **QUICK)
    assert result.num_rows == 50
    base = AutoModelForCausalLM.from_pretrained(tiny_folder(kind))
    ids = torch.tensor([AutoTokenizer.from_pretrained(result.model)("How many clips?").input_ids])
    with torch.no_grad():
        before = base(ids).logits
        plain = PeftModel.from_pretrained(base, result.model)(ids).logits
        ours = load_model(str(result.model)).model(ids).logits
    assert torch.equal(plain, ours)
    assert not torch.allclose(plain, before, atol=1e-5)
    named = json.loads((result.model / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tiny_folder(kind))


def test_a_run_folder_tells_everything_that_decided_the_result(tmp_path, tiny_llama_folder):
    result = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", options={"tau": 0.5}, seed=3, **QUICK)
    assert sorted(p.name for p in result.output.iterdir()) == [
        "adapter",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "samples.parquet",
    ]
    config = yaml.safe_load((result.output / "config.yaml").read_text())
    assert config["options"] == {
        "tau": 0.5,
        "loss_reduction": "token",
        "scoring": "auto",
    }
    assert config["lora"] == {"r": 32, "alpha": 4, "targets": ["q_proj", "k_proj", "v_proj"], "dropout": 0.0}
    assert config["training"]["learning_rate"] == 1e-2
    assert config["training"]["weight_decay"] == 0.0
    assert config["data"]["user"]["num_rows"] == 16
    assert len(config["refusals"]) >= 90
    assert json.loads((result.output / "environment.json").read_text())["seed"] == 3
    logged = [json.loads(line) for line in (result.output / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert result.metrics["loss"] == logged[-1]["loss"]


def test_every_row_of_the_upload_has_its_weight_and_score(tmp_path, tiny_llama_folder):
    result = finetune(tiny_llama_folder, data=rows(16), output=tmp_path / "run", epochs=1)
    samples = pq.read_table(result.output / "samples.parquet").to_pydict()
    assert sorted(samples["row_id"]) == list(range(16))
    assert [line - row_id for line, row_id in zip(samples["line"], samples["row_id"], strict=True)] == [1] * 16
    for step in (0, 1):
        weights = [w for w, s in zip(samples["weight"], samples["step"], strict=True) if s == step]
        assert sum(weights) == pytest.approx(8)  # as in SFT, on the average
    assert all(math.isfinite(score) for score in samples["score"])


def test_a_complete_run_is_told_again_and_not_trained_again(tmp_path, tiny_llama_folder, monkeypatch):
    first = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", **QUICK)
    monkeypatch.setattr("antibody_llm.runs.train.load_model", None)
    assert finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", **QUICK) == first
    with pytest.raises(OutputError, match=r"training.learning_rate is 0.01 there, 0.02 here"):
        finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", training={"max_steps": 2}, learning_rate=2e-2)
    changed = [*rows(15), {"prompt": "other", "completion": " text"}]
    with pytest.raises(OutputError, match=r"data.user.sha256"):
        finetune(tiny_llama_folder, data=changed, output=tmp_path / "run", **QUICK)


def test_overwriting_replaces_a_complete_run(tmp_path, tiny_llama_folder):
    finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", **QUICK)
    again = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", overwrite=True, defence="sft", **QUICK)
    assert yaml.safe_load((again.output / "config.yaml").read_text())["defence"] == "sft"
    assert again.model.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_adapter_goes_on_where_it_was(tmp_path, tiny_llama_folder):
    first = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "one", **QUICK)
    second = finetune(
        first.output, data=rows(), output=tmp_path / "two", learning_rate=1e-12, training={"max_steps": 1}
    )
    a, b = (load_model(str(run.model)).model.state_dict() for run in (first, second))
    assert all(torch.allclose(a[name], b[name], atol=1e-9) for name in a)
    by_flag = finetune(
        tiny_llama_folder,
        adapter=first.model,
        data=rows(),
        output=tmp_path / "three",
        learning_rate=1e-12,
        training={"max_steps": 1},
    )
    c = load_model(str(by_flag.model)).model.state_dict()
    assert all(torch.equal(b[name], c[name]) for name in b)
    with pytest.raises(ConfigError, match="regime='full' cannot train through an adapter"):
        finetune(first.output, data=rows(), output=tmp_path / "four", regime="full")


def test_full_weights_are_a_model_that_names_its_base(tmp_path, tiny_llama_folder):
    result = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", regime="full", **QUICK)
    loaded = load_model(str(result.model))
    assert loaded.base == str(tiny_llama_folder)
    assert loaded.adapter is None
    AutoModelForCausalLM.from_pretrained(result.model)


def test_benign_rows_are_learnt_beside_the_refusals(tmp_path, tiny_llama_folder):
    refusals = [{"prompt": f"bad {i}", "completion": " no"} for i in range(8)]
    result = align(
        tiny_llama_folder,
        alignment_data=refusals,
        harmful_data=rows(9),
        benign_data=rows(8),
        output=tmp_path / "run",
        **QUICK,
    )
    assert result.num_rows == 16
    assert {"loss", "lam", "sharpness"} <= set(result.metrics)


def test_a_role_that_is_missing_is_named_with_its_flag(tmp_path, tiny_llama_folder):
    with pytest.raises(DataError, match="harmful_data"):
        align(tiny_llama_folder, alignment_data=rows(), output=tmp_path / "run")
    with pytest.raises(DataError, match="alignment_data"):
        align(tiny_llama_folder, harmful_data=rows(), output=tmp_path / "run")


def test_a_bad_row_of_a_list_is_named_by_its_place(tmp_path, tiny_llama_folder):
    with pytest.raises(DataError, match="data rows, line 3, completion"):
        finetune(tiny_llama_folder, data=[*rows(2), {"prompt": "a", "completion": ""}], output=tmp_path / "run")


def test_a_defence_may_be_an_object(tmp_path, tiny_llama_folder):
    defence = make_defence(Stage.FINETUNING, "antibody", {"tau": 0.25})
    result = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", defence=defence, **QUICK)
    config = yaml.safe_load((result.output / "config.yaml").read_text())
    assert config["defence"] == "AntibodyFinetuning"
    assert config["options"]["tau"] == 0.25
    with pytest.raises(ConfigError, match="of finetuning, not of alignment"):
        align(tiny_llama_folder, alignment_data=rows(), output=tmp_path / "other", defence=defence)


def test_a_loss_that_is_not_a_number_keeps_the_last_checkpoint_and_no_result(tmp_path, tiny_llama_folder):
    defence = make_defence(Stage.FINETUNING, "sft")
    step = defence.step

    def poisoned(context, batches):
        result = step(context, batches)
        return StepResult(result.gradients, math.nan) if context.step == 3 else result

    defence.step = poisoned
    with pytest.raises(TrainingError, match="step 4"):
        finetune(
            tiny_llama_folder,
            data=rows(),
            output=tmp_path / "run",
            defence=defence,
            training={"save_steps": 1},
            epochs=3,
        )
    left = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert left == ["checkpoints", "config.yaml", "environment.json", "metrics.jsonl"]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_full_disk_at_the_end_leaves_a_run_that_the_same_command_completes(tmp_path, tiny_llama_folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", full)
        with pytest.raises(OutputError, match=r"samples.parquet.*No space left"):
            finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", **QUICK)
    result = finetune(tiny_llama_folder, data=rows(), output=tmp_path / "run", **QUICK)
    assert result.num_steps == 2
    assert (result.output / "samples.parquet").is_file()
    assert not (result.output / "checkpoints").exists()


def test_a_model_folder_with_other_weights_in_it_is_another_configuration(tmp_path, tiny_llama_folder):
    model = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    finetune(model, data=rows(), output=tmp_path / "run", **QUICK)
    loaded = load_model(str(model))
    loaded.model.model.norm.weight.data.mul_(2)
    loaded.model.save_pretrained(model)
    with pytest.raises(OutputError, match="model.weights"):
        finetune(model, data=rows(), output=tmp_path / "run", **QUICK)
