import subprocess
import sys

import pytest

import antibody_llm


@pytest.mark.parametrize("name", antibody_llm.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(antibody_llm, name))
    assert name in dir(antibody_llm)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'aline'"):
        _ = antibody_llm.aline


def test_importing_the_package_brings_nothing_heavy():
    code = "import sys, antibody_llm; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
