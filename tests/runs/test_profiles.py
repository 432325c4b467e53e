"""Three verbs on the lab without a single file, as a newcomer types them."""

import pytest
import yaml

from antibody_llm.errors import ConfigError
from antibody_llm.lab.presets import LORA, PRESETS
from antibody_llm.profiles import profile_of
from antibody_llm.runs import align, evaluate, finetune

SHORT = {"training": {"max_steps": 2}}


def test_align_finetune_and_evaluate_run_on_the_lab_with_its_rows_and_calibration(tmp_path):
    aligned = align("lab", output=tmp_path / "aligned", num=32, **SHORT)
    tuned = finetune(aligned.model, output=tmp_path / "tuned", num=32, poison_ratio=0.25, task="novel", **SHORT)
    measured = evaluate(tuned.output, output=tmp_path / "measured", num=4, task="novel")
    assert 0 <= measured.metrics["harmful_score"] <= 1
    preset = PRESETS[("finetuning", "antibody", "lora")]
    assert yaml.safe_load((aligned.output / "config.yaml").read_text())["lora"].items() >= LORA.items()
    config = yaml.safe_load((tuned.output / "config.yaml").read_text())
    assert config["options"]["tau"] == preset["options"]["tau"]
    assert config["training"]["learning_rate"] == preset["training"]["learning_rate"]
    assert config["training"]["per_device_train_batch_size"] == preset["training"]["batch_size"]
    assert "task=sst2-novel, poison_ratio=0.25" in config["data"]["user"]["source"]
    assert config["data"]["user"]["num_rows"] == 32


def test_a_flag_wins_over_the_calibration(tmp_path):
    run = finetune("lab", output=tmp_path / "run", num=32, options={"tau": 0.7}, learning_rate=1e-5, **SHORT)
    config = yaml.safe_load((run.output / "config.yaml").read_text())
    assert config["options"]["tau"] == 0.7
    assert config["training"]["learning_rate"] == 1e-5


def test_a_descendant_of_the_lab_is_known_as_one(tmp_path, tiny_llama_folder):
    full = align("lab", output=tmp_path / "full", num=32, regime="full", defence="sft", **SHORT)
    adapter = finetune(full.output, output=tmp_path / "adapter", num=32, **SHORT)
    for model in ("lab", str(full.model), str(adapter.model)):
        assert profile_of(model).name == "lab"
    assert profile_of(str(tiny_llama_folder)).name == "none"


def test_what_only_lab_rows_can_obey_is_refused_beside_a_file(tmp_path):
    rows = [{"prompt": "a", "completion": " b"}] * 16
    with pytest.raises(ConfigError, match="poison_ratio"):
        finetune("lab", data=rows, poison_ratio=0.2, output=tmp_path / "run")
