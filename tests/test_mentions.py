"""A message names a setting once, and each surface spells it."""

import pytest

from antibody_llm.cli.options import as_flag
from antibody_llm.errors import ConfigError
from antibody_llm.mentions import in_python, mentioned, setting, spelled


@pytest.mark.parametrize(
    ("name", "value", "python", "flag"),
    [
        ("harmful_data", None, "harmful_data", "--harmful-data"),
        ("regime", "lora", "regime='lora'", "--regime lora"),
        ("options.tau", "0.3", "options={'tau': 0.3}", "--set tau=0.3"),
        ("training.packing", "False", "training={'packing': False}", "--train packing=False"),
        ("lora.r", None, "lora['r']", "--lora r=..."),
        ("overwrite", "True", "overwrite=True", "--overwrite"),
        ("judges", None, "judges", "--judge"),
    ],
)
def test_a_setting_is_spelled_as_each_surface_writes_it(name, value, python, flag):
    message = f"Give {setting(name, value)}."
    assert spelled(message, in_python) == f"Give {python}."
    assert spelled(message, as_flag) == f"Give {flag}."
    assert mentioned(message) == [name]


def test_an_error_names_its_field_and_speaks_python_until_a_surface_spells_it():
    error = ConfigError(f"this defence has none. Give {setting('refusals')}, or {setting('regime', 'full')}.")
    assert error.field == "refusals"
    assert str(error) == "this defence has none. Give refusals, or regime='full'."
    assert error.spelled(as_flag) == "this defence has none. Give --refusals, or --regime full."


def test_text_around_a_mention_is_escaped_and_the_mention_survives():
    error = ConfigError(f"\x1b[31mred: give {setting('data')}", field="base")
    assert error.spelled(lambda name, value: name.upper()) == "\\x1b[31mred: give DATA"
    assert error.field == "base"


def test_an_error_that_repeats_another_keeps_its_mentions():
    first = ConfigError(f"too long. Leave them out with {setting('skip_too_long', 'True')}.")
    again = ConfigError(f"{first.message} The limit is 60.")
    assert again.field == "skip_too_long"
    assert again.spelled(as_flag) == "too long. Leave them out with --skip-too-long. The limit is 60."
