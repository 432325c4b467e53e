import pytest

from antibody_llm.building import lab as lab_files
from antibody_llm.errors import AntibodyError, ConfigError, OutputError
from antibody_llm.lab.build import SCALES, Scale
from antibody_llm.models.loading import load_model
from antibody_llm.profiles.lab import LabProfile


@pytest.fixture
def speck(monkeypatch):
    """A scale of that name, which builds in a second."""
    monkeypatch.setitem(SCALES, "speck", Scale(hidden=16, layers=1, steps=2, learning_rate=1e-3))
    monkeypatch.setattr(LabProfile, "calibration", lambda *key: ({}, {"max_steps": 1}))


def test_both_models_of_the_lab_are_built_and_the_aligned_one_knows_its_base(tmp_path, speck):
    assert lab_files.build_lab(tmp_path, scale="speck") == tmp_path
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lab", "lab-aligned"]
    aligned = load_model(str(tmp_path / "lab-aligned"))
    assert aligned.base == str(tmp_path / "lab")
    assert load_model(str(tmp_path / "lab")).base is None
    with pytest.raises(OutputError, match="lab is not empty"):
        lab_files.build_lab(tmp_path, scale="speck")


def test_a_build_that_was_stopped_goes_on_to_the_same_models_and_another_one_is_refused(tmp_path, speck, monkeypatch):
    def stopped(*given, **named):
        raise KeyboardInterrupt

    lab_files.build_lab(tmp_path / "whole", scale="speck")
    for stop in ("align", "write_anchors"):
        with monkeypatch.context() as patch:
            patch.setattr(lab_files, stop, stopped)
            with pytest.raises(KeyboardInterrupt):
                lab_files.build_lab(tmp_path / "a", scale="speck")
        assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".building", "lab"]
    with pytest.raises(OutputError, match="another configuration .seed is 0 there, 1 here"):
        lab_files.build_lab(tmp_path / "a", scale="speck", seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(lab_files, "build_base", stopped)  # it is there
        lab_files.build_lab(tmp_path / "a", scale="speck")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["lab", "lab-aligned"]
    for model in ("lab", "lab-aligned"):
        one, other = ((tmp_path / name / model / "model.safetensors").read_bytes() for name in ("whole", "a"))
        assert one == other


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_files, "build_base", None)
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path / "file", "a file is there"),
        (tmp_path / "file" / "a", "is not a folder"),
        ("", "empty"),
    ):
        with pytest.raises(AntibodyError, match=message):
            lab_files.build_lab(output)
    with pytest.raises(ConfigError, match="there is no 'huge'"):
        lab_files.build_lab(tmp_path / "a", scale="huge")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_of_rows_is_not_written_over(tmp_path):
    lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=3)
    with pytest.raises(OutputError, match="exists already"):
        lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=4)
    assert lab_files.write_lab_data("benign", tmp_path / "rows.jsonl", num=4, overwrite=True) == 4
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    assert lab_files.write_lab_data("benign", tmp_path / "link.jsonl", num=5, overwrite=True) == 5
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5
    with pytest.raises(OutputError, match="there is no folder"):
        lab_files.write_lab_data("benign", tmp_path / "no" / "rows.jsonl")


def test_rows_of_one_half_of_the_world_are_written_as_many_as_it_holds(tmp_path):
    halves = [
        (lab_files.write_lab_data("harmful-prompts", tmp_path / half, purpose=half), (tmp_path / half).read_text())
        for half in ("calibrate", "report")
    ]
    assert [num for num, _ in halves] == [256, 256]
    assert not set(halves[0][1].splitlines()) & set(halves[1][1].splitlines())
