"""Every way in which an upload, a flag or a folder can be wrong: exit code 2, what, where and how to fix it."""

import json
import shutil

import pytest

from tests.gsm8k import write_jsonl

GOOD = {"messages": [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "2"}]}


def chat(*turns, **extra):
    return {"messages": [{"role": role, "content": content} for role, content in turns], **extra}


def lines(*bad, num=20, at=17):
    """``num`` good rows as JSON Lines, the bad ones from line ``at`` on."""
    rows = [json.dumps(GOOD)] * num
    rows[at - 1 : at - 1 + len(bad)] = [row if isinstance(row, str) else json.dumps(row) for row in bad]
    return "\n".join(rows).encode() + b"\n"


BAD_FILES = {
    "empty": (b"", ["the file is empty"]),
    "not_utf8": (lines().replace(b'"2"', b'"\xe9"', 1), ["line 1", "not UTF-8", "iconv"]),
    "bom": (b"\xef\xbb\xbf" + lines(), ["line 1", "byte order mark", "sed"]),
    "broken_json": (lines('{"messages": ['), ["line 17", "broken JSON", "Fix or remove"]),
    "unknown_role": (lines(chat(("robot", "a"), ("assistant", "b"))), ["line 17", "messages[0].role", "robot", "user"]),
    "no_assistant": (lines(chat(("user", "a"))), ["line 17", "no assistant message", "Append"]),
    "ends_with_user": (lines(chat(("user", "a"), ("assistant", "b"), ("user", "c"))), ["line 17", "from 'user'"]),
    "empty_completion": (lines(chat(("user", "a"), ("assistant", " "))), ["line 17", "completion is empty", "remove"]),
    "mixed_formats": (
        lines({"prompt": "a", "completion": "b"}),
        ["line 17", "line 1 is a chat row", "file of its own"],
    ),
    "too_few_rows": (lines(num=3, at=9), ["3 rows where 8 are needed", "--batch-size 8"]),
}


@pytest.fixture
def kept(tmp_path):
    """An output folder that holds somebody's work. With --overwrite it may go, but not for a run that never begins."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    yield folder
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".out", "out."))] == []


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_upload_is_refused_with_file_line_and_fix(antibody, tmp_path, kept, tiny_llama_folder, name):
    content, texts = BAD_FILES[name]
    file = tmp_path / f"{name}.jsonl"
    file.write_bytes(content)
    ended = antibody("finetune", "--model", tiny_llama_folder, "--data", file, "--output", kept, "--overwrite")
    assert ended.code == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    for text in (str(file), *texts):
        assert text in ended.stderr


def test_a_missing_file_is_refused(antibody, tmp_path, kept, tiny_llama_folder):
    ended = antibody("finetune", "--model", tiny_llama_folder, "--data", tmp_path / "no.jsonl", "--output", kept)
    assert ended.code == 2
    assert "no.jsonl: no such file" in ended.stderr


def test_a_directory_as_upload_is_refused_and_its_files_offered(antibody, tmp_path, kept, tiny_llama_folder):
    folder = tmp_path / "uploads"
    folder.mkdir()
    write_jsonl(folder / "first.jsonl", [GOOD])
    ended = antibody("finetune", "--model", tiny_llama_folder, "--data", folder, "--output", kept)
    assert ended.code == 2
    assert "a directory" in ended.stderr
    assert "first.jsonl" in ended.stderr


@pytest.fixture
def upload(tmp_path):
    return write_jsonl(tmp_path / "user.jsonl", [GOOD] * 16)


def test_rows_longer_than_the_context_are_named_and_can_be_left_out(antibody, tmp_path, kept, tiny_llama_folder):
    long = chat(("user", "word " * 2000), ("assistant", "2"))
    file = tmp_path / "long.jsonl"
    file.write_bytes(lines(long, long))
    command = ["finetune", "--model", tiny_llama_folder, "--data", file, "--defence", "sft", "--train", "max_steps=1"]
    ended = antibody(*command, "--output", kept, "--overwrite")
    assert ended.code == 2
    assert f"{file}: 2 of 20 rows are longer than 1024 tokens: line 17" in ended.stderr
    assert "line 18" in ended.stderr
    assert "--skip-too-long" in ended.stderr
    ended = antibody(*command, "--output", tmp_path / "skipped", "--skip-too-long", "--json")
    assert ended.code == 0
    result = json.loads(ended.stdout)
    assert result["num_rows"] == 18
    assert [row["line"] for row in result["skipped"]] == [17, 18]
    assert result["skipped"][0]["source"] == str(file)


BAD_FLAGS = {
    "--learning-rate -1": ["--learning-rate is -1", "above 0"],
    "--learning-rate 50": ["--learning-rate is 50", "at most 1"],
    "--learning-rate nan": ["--learning-rate is nan"],
    "--batch-size 0": ["--batch-size is 0", "1 or more"],
    "--epochs 0": ["--epochs is 0", "above 0"],
    "--epochs inf": ["--epochs is inf"],
    "--seed -1": ["--seed is -1"],
    "--set tau=-1": ["antibody.tau is -1", "above 0"],
    "--set tau=hot": ["antibody.tau is 'hot'"],
    "--set tua=1": ["antibody.tua: no such option", "did you mean 'tau'"],
    "--set tau": ["--set 'tau'", "NAME=VALUE"],
    "--train learning_rat=1": ["training.learning_rat", "did you mean 'learning_rate'"],
    "--train max_grad_norm=-1": ["training.max_grad_norm is -1"],
    "--train weight_decay=heavy": ["training.weight_decay is 'heavy'"],
    "--train seed=3": ["training.seed", "--seed"],
    "--train packing=true": ["training.packing", "merges rows"],
    "--train lr_scheduler_type=zigzag": ["zigzag"],
    "--lora r=0": ["lora: r 0"],
    "--lora targets=nose": ["no linear layer nose", "q_proj"],
    "--regime half": ["--regime is 'half'", "lora or full"],
    "--defence antibdy": ["antibdy", "did you mean 'antibody'"],
    "--poison-ratio 0.2": ["--poison-ratio", "brings none"],
    "--learning-rte 1": ["No such option", "--learning-rate"],
    "--epochs many": ["--epochs", "valid number"],
    "--resume": ["--resume", "--overwrite"],
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_an_absurd_flag_is_refused_by_name(antibody, kept, upload, tiny_llama_folder, flags):
    command = ["finetune", "--model", tiny_llama_folder, "--data", upload, "--output", kept, "--overwrite"]
    ended = antibody(*command, *flags.split(), "--json")
    assert ended.code == 2
    assert "Traceback" not in ended.stderr
    for text in BAD_FLAGS[flags]:
        assert text in ended.stderr
    assert json.loads(ended.stdout)["error"]["message"] in ended.stderr


def test_a_missing_flag_is_named(antibody, tiny_llama_folder, upload):
    assert "--output is missing" in antibody("finetune", "--model", tiny_llama_folder, "--data", upload).stderr
    assert "Give --data." in antibody("finetune", "--model", tiny_llama_folder, "--output", "x").stderr
    assert "--model is missing" in antibody("finetune", "--data", upload, "--output", "x").stderr


def test_an_output_folder_that_holds_something_else_is_refused(antibody, kept, upload, tiny_llama_folder):
    ended = antibody("finetune", "--model", tiny_llama_folder, "--data", upload, "--output", kept)
    assert ended.code == 2
    assert "thesis.txt" in ended.stderr
    assert "--overwrite" in ended.stderr
    assert antibody("finetune", "--model", tiny_llama_folder, "--data", upload, "--output", kept, "--resume").code == 2


def test_a_model_folder_without_tokenizer_is_refused(antibody, tmp_path, kept, upload, tiny_llama_folder):
    bare = shutil.copytree(tiny_llama_folder, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    ended = antibody("finetune", "--model", bare, "--data", upload, "--output", kept, "--overwrite")
    assert ended.code == 2
    assert "no tokenizer in the folder" in ended.stderr
    assert "tokenizer.json" in ended.stderr


def test_a_tokenizer_without_chat_template_is_refused_for_chats_alone(
    antibody, tmp_path, kept, upload, tiny_folder, tiny_llama_folder
):
    bare = shutil.copytree(tiny_llama_folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    command = ["finetune", "--model", bare, "--defence", "sft", "--train", "max_steps=1"]
    ended = antibody(*command, "--data", upload, "--output", kept, "--overwrite")
    assert ended.code == 2
    assert "no chat template" in ended.stderr
    assert f"{upload}, line 1" in ended.stderr
    text = write_jsonl(tmp_path / "text.jsonl", [{"prompt": "1 and 1?", "completion": " 2"}] * 8)
    assert antibody(*command, "--data", text, "--output", tmp_path / "text").code == 0


def test_a_model_that_is_nowhere_is_refused(antibody, tmp_path, kept, upload):
    ended = antibody("finetune", "--model", tmp_path / "nowhere", "--data", upload, "--output", kept)
    assert ended.code == 2
    assert "no such folder" in ended.stderr


def test_an_unknown_key_of_a_configuration_file_is_refused_with_the_nearest_name(antibody, tmp_path, kept):
    file = tmp_path / "run.yaml"
    file.write_text("model: lab\nlearnin_rate: 1\n")
    ended = antibody("finetune", "--config", file, "--output", kept)
    assert ended.code == 2
    assert str(file) in ended.stderr
    assert "did you mean 'learning_rate'" in ended.stderr
    file.write_text("model: lab\nseed: many\n")
    assert "seed is 'many'" in antibody("finetune", "--config", file, "--output", kept).stderr
    file.write_text("model: [\n")
    assert "line 2: this is not valid YAML" in antibody("finetune", "--config", file, "--output", kept).stderr


def test_an_error_of_ours_ends_with_1_and_says_so(antibody, monkeypatch, kept, upload, tiny_llama_folder):
    def broken(*args, **kwargs):
        raise RuntimeError("a bolt came loose")

    monkeypatch.setattr("antibody_llm.runs.train.load_model", broken)
    ended = antibody("finetune", "--model", tiny_llama_folder, "--data", upload, "--output", kept, "--overwrite")
    assert ended.code == 1
    assert "a bolt came loose" in ended.stderr
    assert "a fault of antibody" in ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("finetune --model lab-aligned --num -3", "--num is -3"),
        ("finetune --model lab-aligned --poison-ratio 2", "--poison-ratio is 2.0"),
        ("finetune --model lab-aligned --task foo", "--task: there is no task 'foo'"),
        ("evaluate --model lab --temperature -1", "--temperature is -1.0"),
        ("evaluate --model lab --max-new-tokens 0", "--max-new-tokens is 0"),
    ],
)
def test_a_flag_that_the_lab_or_a_decoding_refuses_is_spelled_as_a_flag(antibody, kept, words, message):
    ended = antibody(*words.split(), "--output", kept, "--overwrite")
    assert ended.code == 2
    assert message in ended.stderr


@pytest.mark.parametrize(("name", "message"), [("none.yaml", "no such file"), (".", "a folder")])
def test_a_configuration_file_that_is_not_there_is_no_data_set(antibody, tmp_path, name, message):
    ended = antibody("finetune", "--config", tmp_path / name)
    assert ended.code == 2
    assert ended.stderr == f"ConfigError: {tmp_path / name}: {message}. Name a YAML file as --config.\n"
