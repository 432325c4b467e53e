import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from antibody_llm.errors import ConfigError
from antibody_llm.parsing import load_yaml, nearest, parse_value

HOSTILE = Path(__file__).parent / "data" / "hostile" / "yaml"

NOT_YAML = {
    "seed: 1\nseed: 2": "'seed' occurs a second time",
    "options: {tau: 1, tau: 2}": "'tau' occurs a second time",
    '"a": 1\na: 2': "'a' occurs a second time",
    "a: !!int abc": "'abc' is not of the kind 'int'",
    "a: 0x_": "'0x_' is not of the kind 'int'",
    "a: !!float abc": "not of the kind 'float'",
    "a: !!bool perhaps": "not of the kind 'bool'",
    "a: !!timestamp soon": "not of the kind 'timestamp'",
    "a: !!timestamp 2024-13-45": "not of the kind 'timestamp'",
    "a: " + "1" * 5000: "not of the kind 'int'",
    "a: &x [*x]": "is inside what it repeats",
    "a: &x {b: *x}": "is inside what it repeats",
    "a: " + "[" * 5000: "nests too deeply",
    "a: !!python/object:os.system x": "could not determine a constructor",
    "a: *none": "undefined alias",
    "[a]: 1": "unhashable",
}


@pytest.mark.parametrize("text", NOT_YAML, ids=lambda text: text[:30])
def test_what_is_not_yaml_is_refused_with_the_reason(text):
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        load_yaml(text)
    assert NOT_YAML[text] in caught.value.problem
    assert len(caught.value.problem) < 300


def test_an_alias_bomb_is_refused_before_it_is_built():
    started = time.monotonic()
    with pytest.raises(yaml.MarkedYAMLError, match="aliases make it more than"):
        load_yaml((HOSTILE / "bomb_model.yaml").read_text())
    assert time.monotonic() - started < 1


def test_ordinary_aliases_and_merged_keys_are_read():
    assert load_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2}") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2}}


def test_a_date_stays_text():
    assert load_yaml("run: 2024-01-31") == {"run": "2024-01-31"}
    assert load_yaml("2024-13-45") == "2024-13-45"


FITS: dict[str, tuple[Any, Any, Any]] = {
    "number in text": (float, "1e-3", 1e-3),
    "whole number": (int, "3", 3),
    "text": (str | Path, "a/b", "a/b"),
    "yes": (bool | None, True, True),
    "tuple": (str | tuple[str, ...], ["a", "b"], ("a", "b")),
    "mapping": (Mapping[str, Any] | None, {"a": True}, {"a": True}),
}


@pytest.mark.parametrize("name", FITS)
def test_a_value_gets_the_type_of_its_field(name):
    hint, value, parsed = FITS[name]
    assert parse_value(hint, value, "x") == parsed


DOES_NOT_FIT: dict[str, tuple[Any, Any, str]] = {
    "yes as a number": (int, True, "x is True"),
    "no as a number": (float | None, False, "x is False"),
    "nan": (float, "nan", "finite"),
    "infinite": (float, float("inf"), "finite"),
    "infinite inside": (tuple[float, ...], [1, float("inf")], "finite"),
    "text for a number": (int, "many", "x is 'many'"),
    "a name that is none": (Literal["a", "b"], "c", "it must be a or b"),
    "escape": (int, "\x1b[1m", r"\\x1b"),
}


@pytest.mark.parametrize("name", DOES_NOT_FIT)
def test_a_value_that_does_not_fit_is_named(name):
    hint, value, message = DOES_NOT_FIT[name]
    with pytest.raises(ConfigError, match=message):
        parse_value(hint, value, "x")


def test_a_value_that_does_not_fit_carries_its_field():
    with pytest.raises(ConfigError, match="^run.yaml: seed is 'many'") as caught:
        parse_value(int, "many", "run.yaml: seed", field="seed")
    assert caught.value.field == "seed"


def test_an_infinite_number_is_read_where_it_may_mean_something_and_nan_is_not():
    assert parse_value(float, "inf", "x", infinite=True) == float("inf")
    with pytest.raises(ConfigError, match="x is 'nan': it must be a number"):
        parse_value(float, "nan", "x", infinite=True)


def test_the_nearest_name_of_a_very_long_one_is_found_soon():
    started = time.monotonic()
    assert nearest("x" * 10**6, ["tau", "eta"]) == "."
    assert nearest("tua", ["tau", "eta"]) == "; did you mean 'tau'?"
    assert time.monotonic() - started < 1
