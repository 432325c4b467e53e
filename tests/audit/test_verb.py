"""Which model a finished job is compared with."""

import json

import pytest
import yaml

from antibody_llm.audit.verb import began_from
from antibody_llm.errors import ConfigError


@pytest.mark.parametrize("adapter", [None, {"name": "runs/aligned/adapter"}])
def test_a_run_without_a_note_was_begun_from_its_config_s_adapter_or_model(tmp_path, adapter):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "lab"}, "adapter": adapter}))
    expected = "lab" if adapter is None else "runs/aligned/adapter"
    assert began_from(tmp_path, str(tmp_path / "model")) == expected


def test_a_chain_of_jobs_was_begun_from_the_model_that_the_note_names(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "runs/first/model"}, "adapter": None}))
    (tmp_path / "model" / "antibody.json").write_text(json.dumps({"verb": "finetune", "aligned": "lab-aligned"}))
    assert began_from(tmp_path, str(tmp_path / "model")) == "lab-aligned"


def test_a_folder_that_is_not_there_or_says_nothing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder"):
        began_from(tmp_path / "gone", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"no config\.yaml here says"):
        began_from(tmp_path, str(tmp_path))
