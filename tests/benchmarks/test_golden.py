"""``benchmarks/golden.py``: what counts as a difference, and how it is named."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import golden


def write_run(
    folder: Path, *, weight: float = 1.0, score: float = 0.5, loss: float = 2.0, seconds: float = 3.0
) -> None:
    """A run as a verb would leave it, small."""
    run = folder / "run"
    (run / "model").mkdir(parents=True)
    tensors = {"a": torch.zeros(2), "b": torch.tensor([1.0, weight], dtype=torch.bfloat16)}
    save_file(tensors, run / "model" / "model.safetensors", metadata={"format": "pt"})
    pq.write_table(pa.table({"row_id": [0, 1], "score": [0.25, score]}), run / "samples.parquet")
    (run / "metrics.jsonl").write_text(f'{{"loss": 4.0}}\n{{"loss": {loss}}}\n', encoding="utf-8")
    result = {"output": ".", "model": str(folder), "metrics": {"loss": loss}, "seconds": seconds}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    (run / "config.yaml").write_text(f"place: {folder}\n", encoding="utf-8")


@pytest.fixture
def base(tmp_path):
    write_run(tmp_path / "base")
    return tmp_path / "base"


def differences(base: Path, tree: Path) -> list[str]:
    return [str(difference) for difference in golden.compare(base, tree, "run").differences]


def test_runs_that_differ_in_timings_and_paths_alone_are_the_same(base, tmp_path):
    write_run(tmp_path / "tree", seconds=9.0)
    compared = golden.compare(base, tmp_path / "tree", "run")
    assert compared.differences == []
    assert (compared.num_files, compared.num_values) == (4, 3 + 2 + 2 + 1)


def test_a_tensor_that_differs_in_one_bit_is_named_with_the_size_of_the_difference(base, tmp_path):
    write_run(tmp_path / "tree", weight=1.0078125)  # one bit of bfloat16 above 1
    (line,) = differences(base, tmp_path / "tree")
    assert line.startswith("model/model.safetensors: b: BF16[2] ")
    assert line.endswith("largest difference 0.00781")


def test_a_zero_that_changes_its_sign_is_a_difference(base, tmp_path):
    write_run(tmp_path / "tree", loss=-0.0)
    write_run(tmp_path / "zero", loss=0.0)
    assert len(differences(tmp_path / "zero", tmp_path / "tree")) == 2


def test_a_value_that_is_not_a_number_on_both_sides_is_the_same(tmp_path):
    for side in ("base", "tree"):
        write_run(tmp_path / side, score=float("nan"))
    assert differences(tmp_path / "base", tmp_path / "tree") == []


def test_a_table_names_its_first_column_and_row_that_differ(base, tmp_path):
    write_run(tmp_path / "tree", score=0.75)
    assert differences(base, tmp_path / "tree") == [
        "samples.parquet: column score, row 1: 0.5 in the base, 0.75 here, largest difference 0.25"
    ]


def test_a_json_value_is_named_by_its_line_and_path(base, tmp_path):
    write_run(tmp_path / "tree", loss=2.5)
    assert differences(base, tmp_path / "tree") == [
        "metrics.jsonl: line 2.loss: 2.0 in the base, 2.5 here, largest difference 0.5",
        "result.json: metrics.loss: 2.0 in the base, 2.5 here, largest difference 0.5",
    ]


def test_a_file_on_one_side_alone_is_a_difference(base, tmp_path):
    write_run(tmp_path / "tree")
    (tmp_path / "tree" / "run" / "samples.parquet").unlink()
    assert differences(base, tmp_path / "tree") == ["samples.parquet: the file: is there in the base, is not here"]


def test_a_run_that_left_nothing_to_compare_is_no_agreement(tmp_path):
    assert len(differences(tmp_path / "base", tmp_path / "tree")) == 1


def test_the_package_of_a_tree_is_the_one_with_a_command_line(tmp_path):
    (tmp_path / "src" / "renamed" / "cli").mkdir(parents=True)
    with pytest.raises(golden.RunFailed, match="found none"):
        _ = golden.Tree(tmp_path, "here").package
    (tmp_path / "src" / "renamed" / "cli" / "main.py").touch()
    assert golden.Tree(tmp_path, "here").package == "renamed"


FAKE = """
import json, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
if "--fail" in sys.argv:
    sys.exit("it cannot be done")
output.mkdir()
(output / "result.json").write_text(json.dumps({"value": VALUE}))
count = pathlib.Path("count")
count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
"""


def fake_tree(folder: Path, value: int, package: str = "fake") -> golden.Tree:
    cli = folder / "src" / package / "cli"
    cli.mkdir(parents=True)
    (cli / "main.py").write_text(FAKE.replace("VALUE", str(value)), encoding="utf-8")
    return golden.Tree(folder, "here")


def test_trees_whose_packages_have_other_names_are_compared(tmp_path):
    first, second = fake_tree(tmp_path / "a", 1), fake_tree(tmp_path / "b", 2, "renamed")
    runs = [golden.Run("one", "verb")]
    folders = [golden.carry_out(tree, "base", runs, tmp_path / "keep") for tree in (first, second)]
    assert folders[0] != folders[1]
    (difference,) = golden.compare(*folders, "one").differences
    assert str(difference) == "result.json: value: 1 in the base, 2 here, largest difference 1"


def test_a_kept_run_is_carried_out_again_only_if_its_command_or_source_has_changed(tmp_path):
    tree, keep = fake_tree(tmp_path / "a", 1), tmp_path / "keep"
    one, two = golden.Run("one", "verb"), golden.Run("two", "verb", after="one")

    def count(*runs: golden.Run) -> int:
        return int((golden.carry_out(tree, "tree", runs, keep) / "count").read_text())

    assert count(one, two) == 2
    assert count(one, two) == 2
    changed = golden.Run("one", "verb --other")
    assert count(changed) == 3
    assert count(changed, two) == 4  # it reads what has changed
    main = tmp_path / "a" / "src" / "fake" / "cli" / "main.py"
    main.write_text(main.read_text() + "# another source\n")
    assert count(changed, two) == 2  # a folder of its own


def test_a_run_that_fails_is_named_with_its_message(tmp_path):
    tree = fake_tree(tmp_path / "a", 1)
    with pytest.raises(golden.RunFailed, match="(?s)tree .here., one: exit code 1.*it cannot be done"):
        golden.carry_out(tree, "tree", [golden.Run("one", "verb --fail")], tmp_path / "keep")


def test_a_run_brings_the_one_that_it_reads():
    assert [run.name for run in golden.with_sources(["screen"])] == ["upload", "screen"]
    with pytest.raises(golden.RunFailed, match="no run is called screens"):
        golden.with_sources(["screens"])


def test_a_base_that_is_no_commit_ends_with_exit_code_2(capsys):
    assert golden.main(["no-such-commit"]) == 2
    assert "no-such-commit" in capsys.readouterr().err
