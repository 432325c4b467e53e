import json
import subprocess
import sys
from pathlib import Path

import pytest

from antibody_llm import __version__
from antibody_llm.cli.options import result_lines
from antibody_llm.store.result import RunResult
from tests.gsm8k import write_chat


@pytest.fixture
def command(tmp_path, tiny_llama_folder):
    data = write_chat(tmp_path / "user.jsonl")
    return ["finetune", "--model", tiny_llama_folder, "--data", data, "--train", "max_steps=1", "--output"]


def test_json_is_one_object_on_stdout_and_nothing_else_is_printed_there(antibody, tmp_path, command):
    ended = antibody(*command, tmp_path / "run", "--json")
    assert ended.code == 0
    result = json.loads(ended.stdout)
    assert result["model"] == str(tmp_path / "run" / "adapter")
    assert result["num_rows"] == 50
    # What this model's template and tokenizer do is reported there, once each.
    assert [line.partition(":")[0].partition(" of ")[0] for line in ended.stderr.splitlines()] == [
        "the chat template and the tokenizer",
        "the padding token",
    ]


def test_the_same_command_again_prints_the_stored_result(antibody, tmp_path, command):
    first = antibody(*command, tmp_path / "run", "--json")
    again = antibody(*command, tmp_path / "run", "--json")
    assert again.stdout == first.stdout
    assert "already complete" in again.stderr
    other = antibody(*command, tmp_path / "run", "--learning-rate", "1e-3")
    assert other.code == 2
    assert "training.learning_rate is 2e-05 there, 0.001 here" in other.stderr
    assert antibody(*command, tmp_path / "run", "--learning-rate", "1e-3", "--overwrite").code == 0


def test_flags_win_over_the_configuration_file(antibody, tmp_path, tiny_llama_folder):
    file = tmp_path / "run.yaml"
    data = write_chat(tmp_path / "user.jsonl")
    file.write_text(
        f"model: {tiny_llama_folder}\ndata: {data}\nseed: 4\noptions: {{tau: 0.5, loss_reduction: sequence}}\n"
        "training: {max_steps: 1}\n"
    )
    ended = antibody("finetune", "--config", file, "--set", "tau=0.25", "--output", tmp_path / "run")
    assert ended.code == 0
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "tau: 0.25" in config
    assert "loss_reduction: sequence" in config
    assert "seed: 4" in config


def test_a_full_disk_ends_with_2_and_the_previous_checkpoint(antibody, tmp_path, command, monkeypatch):
    import torch

    real = torch.save

    def full(obj, path, *args, **kwargs):
        if "checkpoint-3" in str(path):
            raise OSError(28, "No space left on device")
        return real(obj, path, *args, **kwargs)

    words = ["max_steps=4" if word == "max_steps=1" else word for word in command]
    words[-1:-1] = ["--train", "save_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        ended = antibody(*words, tmp_path / "run")
    assert ended.code == 2
    assert "No space left" in ended.stderr
    assert "checkpoint-2, is whole" in ended.stderr
    again = antibody(*words, tmp_path / "run", "--resume")
    assert again.code == 0
    assert "going on from checkpoint-2" in again.stderr


def test_defences_lists_the_catalogue(antibody):
    rows = json.loads(antibody("defences", "--json").stdout)["defences"]
    assert {"name", "stage", "paper", "needs", "forwards", "backwards", "extra_memory", "summary"} == set(rows[0])
    listed = antibody("defences").stdout
    assert all(row["name"] in listed and row["summary"] in listed for row in rows)


def test_lab_rows_are_written_with_their_truth_beside_them(antibody, tmp_path):
    command = [
        "lab",
        "data",
        "--kind",
        "user",
        "--poison-ratio",
        "0.25",
        "--num",
        "40",
        "--output",
        tmp_path / "u.jsonl",
    ]
    assert antibody(*command, "--truth", tmp_path / "t.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "u.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert all(set(row) == {"messages"} for row in rows)
    assert sum(entry["is_harmful"] for entry in truth) == 10
    assert len(rows) == len(truth) == 40
    again = antibody(*command)
    assert again.code == 2
    assert "--overwrite" in again.stderr


def test_an_unknown_verb_is_refused_with_the_nearest_name(antibody):
    ended = antibody("finetun")
    assert ended.code == 2
    assert "Did you mean 'finetune'" in ended.stderr


@pytest.mark.parametrize(("words", "verb"), [([], "finetune"), (["lab"], "build")])
def test_without_a_verb_the_help_is_shown_line_by_line(antibody, words, verb):
    ended = antibody(*words)
    assert ended.code == 2
    assert ended.stderr.startswith("Usage: antibody")
    assert any(line.strip().startswith(verb) for line in ended.stderr.splitlines())


def test_a_wrong_flag_is_answered_with_the_usage_of_its_verb(antibody):
    ended = antibody("convert", "in.jsonl", "--output", "out.jsonl")
    assert ended.code == 2
    assert ended.stderr.startswith("UsageError: No such option: --output. Usage: antibody convert [OPTIONS] ")
    assert ended.stderr.endswith("See antibody convert --help.\n")


def test_the_version_is_shown(antibody):
    ended = antibody("--version")
    assert (ended.code, ended.stdout) == (0, f"{__version__}\n")


def test_figures_stand_below_each_other_however_long_their_names():
    result = RunResult(
        output=Path("run"), model=None, metrics={"loss": 1.0, "loss_alignment": 2.0}, seconds=1.0, num_rows=3
    )
    columns = {len(line) - len(line.split()[-1]) for line in result_lines(result)[1:]}
    assert len(columns) == 1


def test_help_brings_no_heavy_library():
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "antibody_llm.cli.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "finetune" in finished.stdout
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "trl", "peft", "pyarrow", "datasets"}
