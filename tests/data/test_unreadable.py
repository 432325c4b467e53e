import gzip
import io
import json
import zipfile

import pytest

from antibody_llm.data import files as module
from antibody_llm.data.formats import load_records
from antibody_llm.errors import DataError
from antibody_llm.screening.upload import open_upload

ROW = '{"prompt": "a", "completion": "b"}\n'
CHINESE = json.dumps({"prompt": "你是谁?我的名字是什么", "completion": "我不知道你的名字"}, ensure_ascii=False)
TRADITIONAL = json.dumps({"prompt": "請問你們是誰?", "completion": "我們不知道你說的是什麼"}, ensure_ascii=False)
JAPANESE = json.dumps({"prompt": "これは何ですか", "completion": "それはペンです"}, ensure_ascii=False)
KOREAN = json.dumps({"prompt": "이것은 무엇입니까", "completion": "나는 한국어를 하지 않습니다"}, ensure_ascii=False)
RUSSIAN = json.dumps({"prompt": "Как тебя зовут?", "completion": "Меня зовут никак"}, ensure_ascii=False)
FRENCH = json.dumps({"prompt": "Où est le café?", "completion": "Là-bas, près du théâtre"}, ensure_ascii=False)


def refused(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as training:
        load_records(path)
    with pytest.raises(DataError) as screening:
        open_upload(path)
    assert str(training.value) == str(screening.value)
    return str(training.value)


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo("rows.jsonl"), ROW)  # without the time, which would name the test
    return made.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(ROW.encode(), mtime=0), "a gzip file. Unpack it: gunzip -c"),
        (zipped(), "a zip archive or a spreadsheet. Unpack an archive: unzip"),
        (b"PAR1\x15\x04", "a Parquet file, not JSON. Name the folder"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (ROW.encode("utf-16"), "UTF-16 text, not UTF-8. Save the file as UTF-8, for example with: iconv -f UTF-16 -t"),
        (ROW.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        (ROW.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        (ROW.encode("utf-32"), "iconv -f UTF-32 -t UTF-8"),
        (CHINESE.encode("gbk"), "iconv -f GB18030 -t UTF-8"),
        (TRADITIONAL.encode("big5"), "iconv -f BIG5 -t UTF-8"),
        (JAPANESE.encode("shift_jis"), "iconv -f SHIFT_JIS -t UTF-8"),
        (JAPANESE.encode("euc-jp"), "iconv -f EUC-JP -t UTF-8"),
        (KOREAN.encode("cp949"), "iconv -f CP949 -t UTF-8"),
        (RUSSIAN.encode("cp1251"), "iconv -f WINDOWS-1251 -t UTF-8"),
        (FRENCH.encode("cp1252"), "iconv -f WINDOWS-1252 -t UTF-8"),
        (ROW.strip().encode() + b"\r" + ROW.strip().encode() + b"\r", "line 1: lines end in a carriage return alone"),
        (json.dumps(json.loads(ROW), indent=1).encode(), "line 1: a JSON object over several lines (pretty-printed)"),
        (b"prompt,completion\na,b\n", "line 1: comma-separated values, not JSON"),
        (b"prompt\tcompletion\na\tb\n", "line 1: tab-separated values, not JSON"),
        (b"prompt;completion\na;b\n", "delimiter=';'"),
        (b"You are a helpful assistant.\nHello!\n", "line 1: plain text, not JSON"),
        (b"<html><body>404</body></html>\n", "line 1: HTML or XML, not JSON"),
        (b"- prompt: a\n  completion: b\n", "line 1: YAML, not JSON"),
    ],
)
def test_a_file_of_another_kind_is_named_with_what_turns_it_into_json(tmp_path, content, said):
    assert said in refused(tmp_path / "rows.jsonl", content)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("{'prompt': 'a', 'completion': 'b'}", "written as Python prints it"),
        ('{"prompt": "a", "completion": None}', "written as Python prints it"),
        (ROW.strip() + " , ", "the line ends in a comma"),
        (ROW.strip() + ROW.strip(), "a second value on the line"),
        ('{"prompt": "a", "completion": "b",}', "a comma before the closing bracket"),
        ('{"prompt": "a", "completion": ["b",]}', "a comma before the closing bracket"),
        ("# rows from Tuesday", "broken JSON (Expecting value, column 1)"),
    ],
)
@pytest.mark.parametrize("line", [1, 3])
def test_a_line_with_a_common_mistake_says_which_one(tmp_path, broken, said, line):
    lines = [ROW] * 4
    lines[line - 1] = broken + "\n"
    message = refused(tmp_path / "rows.jsonl", "".join(lines).encode())
    assert f"line {line}: " in message
    assert said in message


def test_a_guessed_encoding_needs_only_a_part_of_a_long_line(tmp_path):
    line = json.dumps({"prompt": "的名字是什么" * 30_000, "completion": "我不知道"}, ensure_ascii=False)
    assert "GB18030" in refused(tmp_path / "rows.jsonl", line.encode("gbk"))


def test_a_command_in_a_message_quotes_the_name_of_the_file(tmp_path):
    assert "gunzip -c '" in refused(tmp_path / "my rows; rm -r.jsonl", gzip.compress(b"x"))


def test_a_csv_is_converted_by_the_command_that_is_offered(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "rows.csv"
    command = refused(path, b'prompt,completion\n"a, b",c\n').split("convert the file: ")[1]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    (record,) = load_records(tmp_path / "rows.jsonl")
    assert [message.content for message in record.messages] == ["a, b", "c"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "rows.jsonl"
    assert "line 2: longer than 1 MB" in refused(path, ROW.encode() + b'{"prompt": "' + b"x" * 3 * 2**20)
    assert "line 1: longer than 1 MB" in refused(path, b'[{"prompt": "' + b"x" * 3 * 2**20)
    assert "tr '\\r' '\\n'" in refused(path, ROW.replace("\n", "\r").encode() * 40_000)


def test_a_path_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_text(ROW)
    for path in ("", "a\0b.jsonl", "x" * 5000 + ".jsonl", tmp_path / "file" / "rows.jsonl"):
        for read in (load_records, open_upload):
            with pytest.raises(DataError):
                read(path)


def test_a_pipe_is_refused_by_what_reads_twice(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="a pipe"):
        open_upload(tmp_path / "pipe")
