"""The settings of every verb: documented, parsed by one parser, checked when they are made."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from antibody_llm import runs
from antibody_llm.cli.options import as_flag
from antibody_llm.errors import ConfigError, OutputError
from antibody_llm.events import inform
from antibody_llm.runs.verb import verb
from antibody_llm.settings import (
    SETTINGS,
    AlignSettings,
    EvaluateSettings,
    FinetuneSettings,
    ScreenSettings,
    fields_of,
    missing,
    parse_settings,
    parse_values,
    written_out,
)

FIELDS = [(name, field) for name, settings in SETTINGS.items() for field in fields_of(settings)]


@pytest.mark.parametrize(("verb", "field"), FIELDS, ids=[f"{verb}.{field.name}" for verb, field in FIELDS])
def test_every_field_says_what_it_is_in_a_sentence_that_fits_a_flags_help(verb, field):
    assert field.help.endswith(".")
    assert 10 < len(field.help) < 110
    assert not field.text.startswith("Of ")
    assert "`" not in field.help.replace("`antibody defences`", "")


@pytest.mark.parametrize("verb", SETTINGS)
def test_a_verb_is_called_with_the_fields_of_its_settings(verb):
    function = getattr(runs, verb)
    parameters = inspect.signature(function).parameters
    names = [field.name for field in fields_of(SETTINGS[verb])]
    by_position = sorted(names, key=lambda name: parameters[name].kind)  # what needs no name comes first
    assert list(parameters)[: len(names)] == by_position
    assert set(parameters) - set(names) <= {"callbacks", "listen"}
    for name in parameters:
        assert f"\n    {name}: " in function.__doc__
    assert "settings:" not in function.__doc__
    assert parameters["model" if verb != "convert" else "source"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def test_python_gives_keywords_or_a_settings_object():
    with pytest.raises(ConfigError, match="regime is 'half': it must be lora or full") as by_keyword:
        runs.finetune("m", output="o", regime="half")
    assert by_keyword.value.field == "regime"
    given, heard = FinetuneSettings("m", output="o"), []

    @verb(FinetuneSettings)
    def noted(settings):
        """Report the model, and return the settings."""
        inform(settings.model)
        return settings

    assert noted.with_settings(given, listen=heard.append) is given
    assert noted("m", output="o", listen=heard.append) == given
    assert [event.message for event in heard] == ["m", "m"]
    with pytest.raises(TypeError, match="data_"):
        runs.finetune("m", output="o", data_=3)


@pytest.mark.parametrize(
    ("given", "message", "field"),
    [
        ({"learnin_rate": 1}, "'learnin_rate': no such key; did you mean 'learning_rate'? Keys: model, output", None),
        ({"seed": "many"}, "--seed is 'many': input should be a valid integer", "seed"),
        ({"epochs": float("nan")}, "--epochs is nan: it must be a finite number.", "epochs"),
        ({"num": True}, "--num is True: it is not of the kind yes or no.", "num"),
        ({"regime": "half"}, "--regime is 'half': it must be lora or full.", "regime"),
        ({"defence": 5}, "--defence is 5: input should be a valid string.", "defence"),
        ({"options": [1]}, "--set is [1]: it must be a mapping of keys to values.", "options"),
        ({"data": "a\0b"}, "--data is 'a\\x00b': no path has a NUL character in it.", "data"),
        ({"model": None}, "--model is None: input should be a valid string", "model"),
        ({7: 1}, "7: no such key", "7"),
    ],
)
def test_one_parser_says_what_does_not_fit_and_which_setting_it_is(given, message, field):
    with pytest.raises(ConfigError) as caught:
        parse_settings(FinetuneSettings, {"model": "m", "output": "o"} | given)
    assert caught.value.spelled(as_flag).startswith(message)
    assert caught.value.field == field or field is None


def test_an_error_begins_with_where_the_values_are_from():
    with pytest.raises(ConfigError, match=r"^run.yaml: seed is 'many'") as caught:
        parse_values(FinetuneSettings, {"seed": "many"}, where="run.yaml")
    assert caught.value.field == "seed"


def test_what_must_be_given_is_named_in_order():
    assert missing(ScreenSettings, ["output"]) == ["data", "model"]
    with pytest.raises(ConfigError, match="data is missing") as caught:
        parse_settings(ScreenSettings, {"output": "o"})
    assert caught.value.field == "data"


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is there") as caught:
        parse_settings(AlignSettings, {"model": "lab", "output": str(tmp_path / "file")})
    assert caught.value.field == "output"


def test_values_have_the_type_of_their_field():
    made = parse_settings(
        EvaluateSettings,
        {"model": "m", "output": "o", "temperature": "1", "judges": ["lab"], "num": "4", "test_data": [{"a": 1}]},
    )
    assert (made.temperature, made.judges, made.num, made.test_data) == (1.0, ["lab"], 4, [{"a": 1}])
    assert made.harmful_prompts is None


def test_an_infinite_option_is_for_its_defence_to_judge():
    given = {"model": "m", "output": "o", "options": {"tau": float("inf")}}
    assert parse_settings(FinetuneSettings, given).options == {"tau": float("inf")}


def test_settings_that_decide_a_result_are_written_out_once():
    settings = FinetuneSettings("m", output="o", seed=3, epochs=2, refusals=Path("r.txt"))
    config = written_out(settings, {"model": {"name": "m"}, "seed": 3, "data": {}})
    assert config["model"] == {"name": "m"}
    assert config["refusals"] == "r.txt"
    assert not {"output", "epochs", "overwrite", "resume", "num"} & set(config)


def test_parsing_a_request_brings_no_torch():
    code = (
        "import sys; from antibody_llm.settings import *; "
        "parse_settings(FinetuneSettings, {'model': 'lab', 'output': 'o'}); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'typer') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


class Unready:
    """A defence as its author's first call would give it: the class."""


@pytest.mark.parametrize(
    ("call", "given", "message"),
    [
        (runs.finetune, {"num": "many"}, "num is 'many': it must be a whole number."),
        (runs.finetune, {"seed": 1.5}, "seed is 1.5: it must be a whole number."),
        (runs.finetune, {"num": True}, "num is True: it must be a whole number."),
        (runs.finetune, {"epochs": "1"}, "epochs is '1': it must be a number."),
        (runs.finetune, {"overwrite": "no"}, "overwrite is 'no': it must be True or False."),
        (runs.finetune, {"options": ["tau"]}, "it must be a dictionary."),
        (runs.finetune, {"data": 5}, "data is 5: it must be text or a path or a list."),
        (runs.finetune, {"defence": 3}, "defence is 3: it must be text or a Defence object."),
        (runs.finetune, {"defence": Unready}, "defence is the class Unready. Give an object of it."),
        (runs.evaluate, {"judges": "keywords"}, "judges is 'keywords': it must be a list."),
        (runs.repair, {"batch_size": "16"}, "batch_size is '16': it must be a whole number."),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_python_by_its_setting(call, given, message):
    with pytest.raises(ConfigError) as refused:
        call("m", output="o", **given)
    assert message in str(refused.value)
    assert refused.value.field == next(iter(given))


def test_a_settings_object_with_a_value_of_the_wrong_kind_is_refused():
    with pytest.raises(ConfigError, match="num is 'many': it must be a whole number"):
        runs.finetune.with_settings(FinetuneSettings("m", output="o", num="many"))


@pytest.mark.parametrize(
    ("args", "given", "message"),
    [
        (("m",), {"outptu": "o"}, r"finetune\(\) got an unexpected keyword argument 'outptu'; did you mean 'output'\?"),
        ((), {"output": "o"}, r"finetune\(\): missing a required argument: 'model'"),
        (("m", "o"), {}, r"finetune\(\): too many positional arguments"),
        (("m",), {"output": "o", "listen": "x"}, r"finetune\(\) listen is a str: it must be callable"),
    ],
)
def test_a_wrong_call_is_a_type_error_of_the_verb(args, given, message):
    with pytest.raises(TypeError, match=message):
        runs.finetune(*args, **given)
