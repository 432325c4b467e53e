"""Every repair of the catalogue through its verb, and the earlier models of its line."""

import json

import pytest
import torch
import yaml

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE
from antibody_llm.errors import ModelError
from antibody_llm.events import Notice, listening
from antibody_llm.lab.rows import build_rows
from antibody_llm.models.loading import load_model
from antibody_llm.models.names import read_provenance, resolve
from antibody_llm.runs import align, finetune, repair
from tests.defences.cases import ACTIVE

POST = [name for stage, name in CATALOGUE if stage is Stage.POST]
PROVIDER = {f"{kind}_data": build_rows(kind, 16, seed=0).rows for kind in ("alignment", "harmful")}
QUICK = {"defence": "sft", "training": {"max_steps": 2}, "learning_rate": 1e-2}
UPLOAD = build_rows("user", 16, seed=0).rows


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Regime to a fine-tuning of the lab's aligned model."""
    folder = tmp_path_factory.mktemp("tuned")
    return {
        regime: finetune("lab-aligned", data=UPLOAD, regime=regime, output=folder / regime, **QUICK).output
        for regime in ("full", "lora")
    }


def weights(model):
    return load_model(str(model)).model.state_dict()


@pytest.mark.parametrize("regime", ["full", "lora"])
@pytest.mark.parametrize("name", POST)
def test_a_repair_finds_the_models_that_it_compares_with_and_changes_the_one_given(tmp_path, tuned, name, regime):
    run = repair(tuned[regime], output=tmp_path / "run", defence=name, options=ACTIVE[Stage.POST, name], **PROVIDER)
    merges = regime == "full" or CATALOGUE[Stage.POST, name].merges
    assert run.model.name == ("model" if merges else "adapter")
    before, after = weights(tuned[regime] / ("model" if regime == "full" else "adapter")), weights(run.model)
    if regime == "full" or not merges:
        assert any(not torch.equal(after[key], value) for key, value in before.items())
    config = yaml.safe_load((run.output / "config.yaml").read_text())
    needed = [key for key in ("aligned", "base") if getattr(CATALOGUE[Stage.POST, name], f"needs_{key}")]
    assert {key: config[key]["name"] for key in ("aligned", "base") if key in config} == {
        key: {"aligned": "lab-aligned", "base": "lab"}[key] for key in needed
    }
    assert read_provenance(resolve(str(run.model)))["aligned"] == "lab-aligned"


def test_a_second_fine_tuning_and_a_repair_name_the_model_that_the_first_started_from(tmp_path, tuned):
    second = finetune(tuned["lora"], data=UPLOAD, output=tmp_path / "second", **QUICK)
    assert read_provenance(str(second.model))["aligned"] == "lab-aligned"


def test_an_adapter_that_holds_the_alignment_is_compared_with_that_of_the_alignment(tmp_path):
    aligned = align("lab", output=tmp_path / "aligned", alignment_data=PROVIDER["alignment_data"], **QUICK)
    later = finetune(aligned.output, data=UPLOAD, output=tmp_path / "tuned", **QUICK)
    run = repair(later.output, output=tmp_path / "run", defence="safe-lora", options={"threshold": 1.0})
    config = yaml.safe_load((run.output / "config.yaml").read_text())
    assert config["aligned"]["name"] == str(aligned.model)
    assert config["base"]["place"] == resolve("lab")
    assert run.model.name == "adapter"


def test_a_model_that_does_not_say_what_it_was_is_refused_until_it_is_named(tmp_path, tuned):
    note = tuned["full"] / "model" / "antibody.json"
    entries = json.loads(note.read_text())
    try:
        note.write_text(json.dumps({k: v for k, v in entries.items() if k != "aligned"}))
        with pytest.raises(ModelError, match=r"does not say which model its fine-tuning started from.*aligned"):
            repair(tuned["full"], output=tmp_path / "run", defence="safe-lora")
        found = repair(tuned["full"], output=tmp_path / "run", defence="safe-lora", aligned="lab-aligned")
        assert yaml.safe_load((found.output / "config.yaml").read_text())["base"]["name"] == "lab"
    finally:
        note.write_text(json.dumps(entries))


def test_an_earlier_model_that_is_not_read_is_reported_and_not_written_down(tmp_path, tuned):
    notices = []
    with listening(notices.append):
        run = repair(
            tuned["full"], output=tmp_path / "run", defence="antidote", aligned="lab-aligned", base="lab", **PROVIDER
        )
    said = [event.message for event in notices if isinstance(event, Notice)]
    assert sum("is not used: Antidote does not compare with that model" in text for text in said) == 2
    assert {"aligned", "base"}.isdisjoint(yaml.safe_load((run.output / "config.yaml").read_text()))
