"""A field of a settings dataclass is found on every surface: a new one is one edit."""

import inspect
import json
from dataclasses import dataclass

import pytest
import typer
import yaml
from typer.testing import CliRunner

from antibody_llm import runs
from antibody_llm.cli.verbs import command
from antibody_llm.errors import ConfigError
from antibody_llm.runs.train import train
from antibody_llm.runs.verb import verb
from antibody_llm.settings import FinetuneSettings, fields_of, parse_settings
from tests.gsm8k import write_chat


@dataclass(frozen=True, kw_only=True)
class Wider(FinetuneSettings):
    """Train on a user's upload, with one parameter more."""

    patience: int = 3
    """Epochs without progress before training ends. Never 0."""


@pytest.fixture
def wider():
    @verb(Wider)
    def finetune(settings: Wider):
        """Fine-tune.

        Args:
            settings: What, and how.
        """
        return train(settings, callbacks=())

    return finetune


@pytest.fixture
def called(wider, monkeypatch):
    """The command line of the verb, and the settings that its function was given."""
    seen = []

    @verb(Wider)
    def finetune(settings: Wider):
        """Note the settings."""
        seen.append(settings)
        raise ConfigError("seen")

    monkeypatch.setattr(runs, "finetune", finetune)
    app = typer.Typer(rich_markup_mode=None)
    app.command("finetune")(command("finetune", Wider))

    def call(*arguments):
        seen.clear()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return seen[0] if seen else result

    return call


def test_a_new_field_is_a_flag_with_its_help_and_default(called):
    shown = " ".join(called("--help").stdout.split())
    assert "--patience <int> Epochs without progress before training ends. [default: 3]" in shown
    assert called("--model", "m", "--output", "o", "--patience", "5").patience == 5
    assert called("--model", "m", "--output", "o").patience == 3


def test_a_new_field_is_a_key_of_a_configuration_file_and_a_flag_wins_over_it(called, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: m\noutput: o\npatience: 7\n")
    assert called("--config", file).patience == 7
    assert called("--config", file, "--patience", "5").patience == 5


def test_a_new_field_is_an_argument_in_python(wider):
    parameter = inspect.signature(wider).parameters["patience"]
    assert (parameter.default, parameter.annotation, parameter.kind) == (3, int, parameter.KEYWORD_ONLY)
    assert "    patience: Epochs without progress before training ends. Never 0.\n" in wider.__doc__


def test_a_new_field_is_a_key_of_a_request(tmp_path):
    body = {"model": "m", "output": str(tmp_path / "o")}
    assert parse_settings(Wider, json.loads(json.dumps(body | {"patience": 7}))).patience == 7
    with pytest.raises(ConfigError, match="did you mean 'patience'") as caught:
        parse_settings(Wider, body | {"patienc": 7})
    assert caught.value.field == "patienc"
    with pytest.raises(ConfigError, match="patience is 'long'") as caught:
        parse_settings(Wider, body | {"patience": "long"})
    assert caught.value.field == "patience"


def test_a_new_field_is_in_config_yaml_and_decides_whether_a_run_is_the_same(wider, tmp_path, tiny_llama_folder):
    data = write_chat(tmp_path / "user.jsonl")
    wanted = {"data": data, "output": tmp_path / "run", "defence": "sft", "training": {"max_steps": 1}}
    wider(tiny_llama_folder, patience=4, **wanted)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["patience"] == 4
    with pytest.raises(Exception, match="patience is 4 there, 3 here"):
        wider(tiny_llama_folder, **wanted)


def test_the_new_field_is_the_only_difference():
    assert {field.name for field in fields_of(Wider)} - {field.name for field in fields_of(FinetuneSettings)} == {
        "patience"
    }
