import json
from pathlib import Path

import pytest

from antibody_llm.errors import OutputError
from antibody_llm.screening.evidence import EvidenceKind
from antibody_llm.screening.posterior import Finding
from antibody_llm.screening.result import SUMMARY, ScreenResult, stored_screening


def result(folder, **changed):
    values = {
        "output": folder,
        "data": "user.jsonl",
        "num_rows": 3,
        "num_scored": 2,
        "num_distinct": 2,
        "flags": {"empty": 1},
        "verdict": Finding.HARM,
        "estimated_harmful_share": 0.25,
        "interval": (0.1, 0.5),
        "p_value": 0.001,
        "num_likely_harmful": 1,
        "num_far": 0,
        "label_first": (3, 1),
        "measure": EvidenceKind.FEATURE_SHIFT,
        "model": "lab-aligned",
        "base": "lab",
        "warnings": ("one",),
        "seconds": 1.5,
    }
    return ScreenResult(**(values | changed))


@pytest.mark.parametrize("interval", [(0.1, 0.5), None])
def test_a_stored_result_is_read_back_from_wherever_its_folder_has_been_moved(tmp_path, interval):
    (tmp_path / SUMMARY).write_text(result(Path("elsewhere"), interval=interval).to_stored())
    assert json.loads((tmp_path / SUMMARY).read_text())["output"] == "."
    assert stored_screening(tmp_path) == result(tmp_path, interval=interval)


@pytest.mark.parametrize("content", ["{", '{"interval": null}', '"text"'])
def test_a_damaged_summary_is_reported_with_the_setting_that_replaces_it(tmp_path, content):
    (tmp_path / SUMMARY).write_text(content)
    with pytest.raises(OutputError, match=r"summary\.json: cannot be read.*with overwrite"):
        stored_screening(tmp_path)
