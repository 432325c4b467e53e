import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from antibody_llm.data.encode import RowError
from antibody_llm.data.problems import BadRow
from antibody_llm.data.records import TokenizedRow
from antibody_llm.errors import DataError
from antibody_llm.screening import scan as module
from antibody_llm.screening.scan import scan
from antibody_llm.screening.upload import open_upload


class StandIn:
    """A reader without a model: the evidence of a row is the length of its prompt."""

    def __init__(self):
        self.asked = []
        self.answers = None
        self.renderer = SimpleNamespace(spelled=lambda record: "<eos>" if "<eos>" in prompt_of(record) else None)

    def encoded(self, record):
        prompt = prompt_of(record)
        if "bad" in prompt:
            raise RowError(record, BadRow("bad", "cannot be encoded"))
        return (
            None
            if "long" in prompt
            else TokenizedRow(record.row_id, tuple(map(ord, prompt)), ((0, 1),), record.template)
        )

    def read(self, rows, where, advance):
        self.asked.append(list(where))
        advance(1)
        return [(float(len(row.input_ids)), 0, 2.0) for row in rows]

    def unfamiliar(self, found):
        return [evidence > 8 for evidence, _, _ in found]

    def relative(self, distance):
        return distance / 2


def prompt_of(record):
    return record.messages[0].content


def upload_of(path, *prompts):
    rows = [{"prompt": prompt, "completion": "b"} for prompt in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_upload(path)


@pytest.fixture
def upload(tmp_path):
    return upload_of(tmp_path / "user.jsonl", "one", " ", "one", "long", "<eos>", "unfamiliar")


def test_every_row_has_a_line_in_the_upload_s_order_with_its_flags_and_numbers(upload):
    found = scan(upload, StandIn(), lambda done: None)
    rows = list(found.table.rows(None, ["no."]))
    assert [row["evidence"] for row in rows] == [3, None, 3, None, 5, 10]
    assert [row["distance"] for row in rows] == [1, None, 1, None, 1, 1]
    flags = [[], ["empty"], ["duplicate"], ["too long"], ["control tokens"], ["unfamiliar"]]
    assert [row["flags"] for row in rows] == flags
    shown = found.shown(None, ["no."])
    assert [(row.position, line["line"], times) for row, line, times in shown] == [(5, 6, 1), (4, 5, 1), (0, 1, 2)]
    assert [row.position for row in found.label_first.chosen()] == [5]


@pytest.mark.parametrize(("limit", "value"), [("CHUNK_ROWS", 2), ("CHUNK_CHARACTERS", 4)])
def test_a_row_is_read_once_however_the_upload_is_cut_and_progress_ends_at_its_length(
    upload, monkeypatch, limit, value
):
    at_once = list(scan(upload, StandIn(), lambda done: None).table.rows(None, ["no."]))
    monkeypatch.setattr(module, limit, value)
    reader, progress = StandIn(), []
    assert list(scan(upload, reader, progress.append).table.rows(None, ["no."])) == at_once
    assert [line for some in reader.asked for line in some] == [f"{upload.name}, line {number}" for number in (1, 5, 6)]
    assert len(reader.asked) > 1
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0, 6)


def test_rows_that_cannot_be_encoded_are_all_named_and_no_row_after_them_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ROWS", 1)
    reader = StandIn()
    with pytest.raises(DataError, match=r"line 2.*1 more like it: line 4"):
        scan(upload_of(tmp_path / "user.jsonl", "a", "bad", "b", "bad"), reader, lambda done: None)
    assert len(reader.asked) == 1


def test_an_upload_that_changed_since_it_was_opened_is_refused(upload):
    with pytest.raises(DataError, match="it changed while it was read"):
        scan(replace(upload, num_rows=7), StandIn(), lambda done: None)
