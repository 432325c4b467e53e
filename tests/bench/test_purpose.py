import pytest

from antibody_llm.bench.purpose import purpose_of
from antibody_llm.errors import ConfigError
from antibody_llm.lab.world import CALIBRATE, REPORT


@pytest.mark.parametrize(
    ("rows", "purpose"), [([], REPORT), ([{}], None), ([{}, {"purpose": None}], None), ([{"purpose": REPORT}], REPORT)]
)
def test_a_row_without_a_purpose_is_of_the_whole_world(rows, purpose):
    assert purpose_of(rows, "file") == purpose


@pytest.mark.parametrize("other", [{}, {"purpose": CALIBRATE}])
def test_rows_of_two_parts_are_refused_by_the_name_of_their_file(other):
    with pytest.raises(ConfigError, match=r"^cells.json: some rows are of .* others of .*`report`"):
        purpose_of([other, {"purpose": REPORT}], "cells.json")
