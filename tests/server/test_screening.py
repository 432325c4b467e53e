"""What is screened of an upload: every row of every form that upload accepts, each in its line."""

import io
import json
from dataclasses import replace

import pytest

from antibody_llm.data.files import iter_json_rows
from antibody_llm.errors import DataError
from antibody_llm.server.housekeeping import housekeep
from antibody_llm.server.settings import ScreeningSettings
from antibody_llm.server.validation import validate
from antibody_llm.server.working.screening import write_rows
from tests.server.running import Server, chat_rows, dpo_rows, train, upload
from tests.server.stages_here import Script
from tests.server.test_worker import SFT, failing, screened, work_off


def rows(content):
    return [json.loads(line) for line in content.splitlines() if line.strip()]


FORMS = {
    "lines": lambda content: content,
    "lines with blank ones": lambda content: content.replace(b"\n", b"\n\n"),
    "no last line end": lambda content: content.rstrip(),
    "a list": lambda content: json.dumps(rows(content), indent=1).encode(),
    "a list in one line": lambda content: json.dumps(rows(content)).encode(),
}


def written(content):
    target = io.BytesIO()
    return write_rows(io.BytesIO(content), target), target.getvalue()


@pytest.mark.parametrize("made", [chat_rows, dpo_rows])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_upload_accepts_is_screened_and_its_rows_keep_lines_of_their_own(made, form, tmp_path):
    content = FORMS[form](made(3))
    assert validate(io.BytesIO(content), line_bytes=10**6).num_faults == 0
    num_lines, text = written(content)
    (tmp_path / "given").write_bytes(content)
    (tmp_path / "written").write_bytes(text)
    given = [line for line, _ in iter_json_rows(tmp_path / "given")]
    kept = list(iter_json_rows(tmp_path / "written"))
    assert [line for line, _ in kept] == (given if len(set(given)) == 3 else [1, 2, 3])
    assert num_lines == kept[-1][0] == text.count(b"\n")
    if made is chat_rows:
        assert [row for _, row in kept] == rows(chat_rows(3))
    assert [row["messages"][-1]["content"] for _, row in kept] == (
        ["0.", "1.", "2."] if made is chat_rows else ["good 0", "good 1", "good 2"]
    )


def test_half_a_surrogate_pair_is_screened_as_it_is_trained_on():
    content = b'{"prompt": "a\\ud800", "completion": "b"}\n'
    assert json.loads(written(content)[1]) == json.loads(content)


def test_a_row_that_cannot_be_read_is_named_by_its_line():
    with pytest.raises(DataError, match="training file, line 2"):
        written(b'{"a": 1}\n{"a": \n')


# -- chains ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chained(tmp_path):
    """Screen a list that continues a model, and return the job and what was screened."""

    def run(*, delete=False, action="report"):
        with Server(tmp_path / "home", screening=ScreeningSettings(action=action, max_share=1.0)) as server:
            client = server.client()
            first = upload(client, chat_rows(11).rstrip()).id
            client.fine_tuning.jobs.create(model="lab", training_file=first, extra_body=SFT)
            parent = client.fine_tuning.jobs.retrieve(train(server)).fine_tuned_model
            if delete:
                client.files.delete(first)
                housekeep(server.context)
            given = upload(client, FORMS["a list in one line"](chat_rows(12, word="y"))).id
            job = client.fine_tuning.jobs.create(model=parent, training_file=given, extra_body=SFT)
            found = []

            def screen(settings):
                with open(settings["data"]) as file:
                    found.extend(map(json.loads, file))
                return screened(num_rows=len(found))(settings)

            server.context.settings = replace(server.context.settings, home=tmp_path)
            work_off(server, Script(screen=screen, train=failing("TrainingError")))
            return client.fine_tuning.jobs.retrieve(job.id), found

    return run


def test_uploads_of_a_chain_are_screened_together_whatever_their_forms(chained):
    job, found = chained()
    assert found == rows(chat_rows(12, word="y")) + rows(chat_rows(11))
    assert job.error.code == "training_diverged"  # it went on
    assert "were screened together with it." in job.safety["screening"]["note"]


def test_a_model_can_be_continued_whose_upload_was_deleted_and_the_report_says_what_was_not_screened(chained):
    job, found = chained(delete=True)
    assert found == rows(chat_rows(12, word="y"))
    assert job.error.code == "training_diverged"
    assert "but for 1 of 1, which are deleted" in job.safety["screening"]["note"]


def test_deleting_an_upload_hides_nothing_from_an_operator_who_refuses(chained):
    job, found = chained(delete=True, action="refuse")
    assert not found
    assert (job.error.code, job.error.param) == ("screening_refused", "model")
    assert "Train on all rows at once, from lab." in job.error.message
