"""The comparison of what was found with a preset, and the settings of both runs."""

import pytest
from benchmarks.calibration import SETTINGS, compared

from antibody_llm.settings.calibrate import CalibrateSettings


def point(name, low, high):
    mean = {"value": (low + high) / 2, "low": low, "high": high}
    return {"name": name, "setting": "tau 0.2", "reported": dict.fromkeys(("harm", "refusal", "accuracy"), mean)}


def test_what_was_found_overlaps_another_point_where_their_intervals_do():
    points = [point("found", 0.1, 0.2), point("defaults", 0.3, 0.4), point("the model's own preset", 0.2, 0.3)]
    found = compared({"points": points, "num_trials": 25, "search_seconds": 90.0, "verdict": "It holds."})
    overlaps = {name: each["harm"]["overlaps"] for name, each in found["beside"].items()}
    assert overlaps == {"the model's own preset": True, "defaults": False}
    assert (found["setting"], found["search_minutes"]) == ("tau 0.2", 1.5)


@pytest.mark.parametrize("world", SETTINGS)
def test_the_settings_of_each_run_are_settings_of_the_verb(world):
    assert CalibrateSettings(model="any", output="out", **SETTINGS[world]).trials >= 8
