"""Flags, configuration files and paths that a hostile tester gave: exit code 2 and a message, nothing written."""

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from antibody_llm.lab.rows import build_rows
from tests.gsm8k import write_jsonl

HOSTILE = Path(__file__).parents[1] / "data" / "hostile" / "yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTIBODY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def upload(tmp_path):
    return write_jsonl(tmp_path / "user.jsonl", build_rows("user", 16, seed=3).rows)


def refused(ended, *texts):
    assert ended.code == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert all(line.isprintable() for line in ended.stderr.splitlines())
    assert len(ended.stderr) < 4200
    for text in texts:
        assert text in ended.stderr


YAML = {
    "baddate.yaml": ["baddate.yaml: 'run': no such key"],
    "bomb_model.yaml": ["bomb_model.yaml, line", "aliases make it more than"],
    "data_rec.yaml": ["data_rec.yaml, line 2", "an alias is inside what it repeats"],
    "dup_key.yaml": ["dup_key.yaml, line 5", "the key 'seed' occurs a second time"],
    "nul_data.yaml": ["--data is 'a\\x00b'", "NUL"],
    "refusals_surr.yaml": ["half a surrogate pair"],
}


@pytest.mark.parametrize("name", YAML)
def test_a_hostile_configuration_file_is_refused_by_line_or_key(antibody, name):
    defence = [] if name == "refusals_surr.yaml" else ["--defence", "sft"]
    refused(antibody("finetune", "--config", HOSTILE / name, "--output", "run", *defence), *YAML[name])
    assert os.listdir() == []


TEXTS = {
    "a: \x1b[2J\n": "a YAML reader takes no control characters",
    '"\\e[2J\\u202e": 1\n': "an escaped one in a key",
    "model: lab\nseed: !!int abc\n": "a tag that lies",
    "model: [1, 2]\n": "a list for a name",
    "model: lab\nnum: yes\n": "yes for a number",
    "model: lab\nlearning_rate: .nan\n": "no number",
    "model: lab\noptions: {tau: 2024-13-45}\n": "a date that there is none",
    "model: lab\noptions: {tau: .nan}\n": "no number in an option",
    "model: lab\ntraining: {1: 2}\n": "a number for a name",
    "model: lab\ndata: [{a: 1}]\n": "rows of no format",
    "model: lab\ndata: [1]\n": "rows that are none",
    "model: ''\n": "an empty name",
    "model: lab\nbase: ~nosuchuser/x\n": "a user who is not there",
    "- model\n": "no mapping",
    "null\n": "nothing",
}


@pytest.mark.parametrize("text", TEXTS, ids=TEXTS.get)
def test_a_configuration_file_with_a_value_that_is_none_is_refused(antibody, tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    ended = antibody("finetune", "--config", file, "--output", "run")
    refused(ended)
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


PATHS = ["", "a\0b", "~nosuchuser", "x" * 300, "d/" * 3000, "user.jsonl/below"]
PATH_FLAGS = {
    "finetune": ["--model", "--data", "--adapter", "--base", "--alignment-data", "--refusals", "--output", "--config"],
    "screen": ["--model", "--adapter", "--base", "--refusals", "--output", "--config"],
    "evaluate": ["--model", "--harmful-prompts", "--test-data", "--output"],
    "repair": ["--model", "--adapter", "--harmful-data", "--output"],
    "align": ["--model", "--anchor-harmful-data", "--output"],
}


@pytest.mark.parametrize("path", PATHS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize(("verb", "flag"), [(verb, flag) for verb, flags in PATH_FLAGS.items() for flag in flags])
def test_a_path_that_is_none_is_refused_by_every_flag(antibody, tmp_path, upload, verb, flag, path):
    flags = {"--model": "lab-aligned", "--output": "run"} | {flag: path}
    command = [verb, *(["user.jsonl"] if verb == "screen" else []), *(word for pair in flags.items() for word in pair)]
    if flag == "--alignment-data":
        command += ["--defence", "lisa"]
    if flag == "--base":
        command += ["--defence", "antibody-posterior"] if verb == "finetune" else []
    refused(antibody(*command))
    assert [p.name for p in tmp_path.iterdir()] == ["user.jsonl"]


@pytest.mark.parametrize("output", ["/", "..", "user.jsonl", "user.jsonl/x"])
@pytest.mark.parametrize("verb", ["finetune", "screen", "evaluate", "repair", "lab data", "lab build", "demo"])
def test_an_output_where_nothing_can_be_made_is_refused(antibody, tmp_path, upload, verb, output):
    more = {"screen": ["user.jsonl"], "lab data": ["--kind", "user"]}.get(verb, [])
    model = [] if verb in ("lab data", "lab build", "demo") else ["--model", "lab"]
    before = upload.read_bytes()
    refused(antibody(*verb.split(), *more, *model, "--output", output))
    assert [p.name for p in tmp_path.iterdir()] == ["user.jsonl"]
    assert upload.read_bytes() == before


def test_a_folder_that_the_system_does_not_show_is_refused(antibody, tmp_path, upload, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(os, "scandir", broken)
    refused(
        antibody("screen", upload, "--model", "model", "--output", "run"), "--model is 'model'", "Input/output error"
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EMFILE])
def test_what_the_operating_system_refuses_in_the_middle_is_not_our_fault(antibody, upload, monkeypatch, number):
    def broken(*args, **kwargs):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(sys.modules["antibody_llm.runs.screen"], "open_run", broken)
    refused(antibody("screen", upload, "--model", "lab", "--output", "run"), "some/file", os.strerror(number))


def test_memory_that_does_not_suffice_is_not_our_fault(antibody, upload, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(sys.modules["antibody_llm.runs.screen"], "open_run", broken)
    refused(antibody("screen", upload, "--model", "lab", "--output", "run"), "--batch-size")


FLAGS = {
    "finetune --set tau=nan": "antibody.tau is 'nan'",
    "finetune --set tau=2024-13-45": "antibody.tau is '2024-13-45'",
    "finetune --set tau=0x_": "antibody.tau is '0x_'",
    "finetune --set tau=true": "antibody.tau is True",
    "finetune --set tau=1 --set tau=2": "given twice",
    "finetune --set =1": "NAME=VALUE",
    "finetune --lora targets=[]": "lora targets: none",
    "finetune --lora targets=[lm_head]": "no linear layer lm_head",
    "finetune --lora targets=lm_head": "no linear layer lm_head",
    "finetune --lora r=1000000": "r 1000000 is above",
    "finetune --lora alpha=.inf": "lora.alpha is inf",
    "finetune --learning-rate inf": "--learning-rate is inf",
    "finetune --epochs nan": "--epochs is nan",
    "finetune --poison-ratio nan": "--poison-ratio is nan",
    "finetune --num -1": "num is -1",
    "finetune --num 1000000000000": "num is 1000000000000",
    "finetune --seed 99999999999999999999": "--seed is 99999999999999999999",
    "finetune --train save_only_model=true": "a killed run would go on to another end",
    "finetune --train chat_template_path=x": "already encoded",
    "finetune --train completion_only_loss=true": "completions are trained",
    "finetune --train label_smoothing_factor=0.1": "its own loss",
    "finetune --train dataloader_drop_last=true": "by this library",
    "evaluate --max-new-tokens 0": "--max-new-tokens is 0",
    "evaluate --temperature nan": "--temperature is nan",
    "evaluate --seed -1": "--seed is -1",
    "repair --seed 99999999999999999999": "--seed is 99999999999999999999",
    "repair --batch-size 0": "--batch-size is 0",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_flag_that_cannot_be_meant_is_refused(antibody, tmp_path, flags):
    verb, *rest = flags.split()
    refused(antibody(verb, "--model", "lab-aligned", "--output", "run", *rest), FLAGS[flags])
    assert list(tmp_path.iterdir()) == []


def test_the_truth_never_takes_the_place_of_the_rows(antibody, tmp_path):
    (tmp_path / "link").symlink_to("rows.jsonl")
    for truth in ("rows.jsonl", "./rows.jsonl", "link"):
        command = ["lab", "data", "--kind", "user", "--num", 5, "--output", "rows.jsonl", "--truth", truth]
        refused(antibody(*command, "--overwrite"), "--output and --truth are one file")
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_base_of_another_shape_is_refused_before_it_is_compared(antibody, upload, tiny_llama_folder, tmp_path):
    model = shutil.copytree(tiny_llama_folder, tmp_path / "model")
    command = ["screen", upload, "--model", model, "--base", "lab", "--output", "run"]
    refused(antibody(*command), "lab: its hidden_size is", "--base")


def test_rows_that_come_through_a_pipe_are_screened_as_those_of_a_file(antibody, tmp_path, upload):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(upload.read_bytes()))
    writer.start()
    ended = antibody("screen", "pipe", "--model", "lab", "--output", "run", "--json")
    writer.join()
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["num_rows"] == 16
    assert json.loads(ended.stdout)["data"] == "pipe"


def test_a_pipe_of_the_shell_and_one_that_nobody_writes_into_end(tmp_path, upload, monkeypatch, antibody):
    monkeypatch.setattr("antibody_llm.paths.PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    for command in (
        ["screen", "pipe", "--model", "lab", "--output", "run"],
        ["finetune", "--model", "lab", "--data", "pipe", "--output", "run"],
        ["finetune", "--model", "lab", "--refusals", "pipe", "--output", "run"],
        ["finetune", "--config", "pipe", "--output", "run"],
        ["evaluate", "--model", "lab", "--test-data", "pipe", "--output", "run"],
    ):
        refused(antibody(*command), "pipe: a pipe, and nobody wrote into it")
    refused(antibody("screen", "pipe", "--model", "pipe", "--output", "run"), "pipe: a file, not a model's folder")
    refused(antibody("screen", "/dev/zero", "--model", "lab", "--output", "run"), "/dev/zero: a device")
