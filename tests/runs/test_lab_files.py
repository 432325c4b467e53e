import pytest

from antibody.errors import OutputError
from antibody.lab.build import SCALES, Scale
from antibody.models.loading import load_model
from antibody.runs import lab_files


def test_both_models_of_the_lab_are_built_and_the_aligned_one_knows_its_base(tmp_path, monkeypatch):
    monkeypatch.setitem(SCALES, "speck", Scale(hidden=16, layers=1, steps=2, learning_rate=1e-3))
    monkeypatch.setattr(lab_files, "calibration", lambda *key: ({}, {"max_steps": 1}))
    assert lab_files.build_lab(tmp_path, scale="speck") == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lab", "lab-aligned"]
    aligned = load_model(str(tmp_path / "lab-aligned"))
    assert aligned.base == str(tmp_path / "lab")
    assert load_model(str(tmp_path / "lab")).base is None
    with pytest.raises(OutputError, match="lab: is not empty"):
        lab_files.build_lab(tmp_path, scale="speck")


def test_a_file_of_rows_is_not_written_over(tmp_path):
    lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=3)
    with pytest.raises(OutputError, match="exists already"):
        lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=4)
    assert lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=4, overwrite=True) == 4
    with pytest.raises(OutputError, match="there is no folder"):
        lab_files.write_lab_data("benign", tmp_path / "no" / "rows.jsonl")
