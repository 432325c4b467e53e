"""The pages: what each shows to whom, and that nothing of a stranger's making is more than text in it."""

import csv
import io
import json
import re
from dataclasses import replace
from html import unescape

import openai
import pytest

from antibody_llm.server.console.views import losses
from antibody_llm.server.database.tables import Audit, File, Job
from antibody_llm.server.numbering import numbered
from tests.server.console.demo import HOSTILE, LINES, SECRET_TEXT, Browser, Demo, Elements
from tests.server.running import Server


@pytest.fixture(scope="module")
def jobs(demo, customer):
    """A customer's jobs, by state."""
    project = customer[0]
    made = {status: demo.judged(project, status)[0] for status in ("succeeded", "failed", "held")}
    return made | {status: demo.job(project, status) for status in ("running", "queued", "paused", "cancelled")}


@pytest.fixture(scope="module")
def stranger(server):
    """Another customer, signed in."""
    return Browser(server, server.tenant("strangers")[1])


def text_of(answer):
    """The words of a page, with one space between."""
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", answer.text)))


# -- whose is what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/live", "/rows", "/rows?page=2"])
def test_another_tenant_s_job_is_not_there(stranger, theirs, jobs, path):
    foreign, never = (stranger.get(f"/console/jobs/{job}{path}") for job in (jobs["held"], "ftjob-nothing"))
    assert (foreign.status_code, never.status_code) == (404, 404)
    assert foreign.text.replace(jobs["held"], "ftjob-nothing") == never.text
    assert theirs.get(f"/console/jobs/{jobs['held']}{path}").status_code == 200


def test_another_tenant_s_file_is_not_there(stranger, theirs, demo, customer):
    file = demo.file(customer[0])
    assert stranger.get(f"/console/files/{file}").status_code == 404
    assert theirs.get(f"/console/files/{file}").status_code == 200


def test_lists_hold_ones_own_alone_whatever_the_address_says(stranger, customer, jobs, demo):
    file = demo.file(customer[0])
    for query in ("", f"?project={customer[0]}"):
        assert "ftjob-" not in stranger.get(f"/console/jobs{query}").text
        assert "file-" not in stranger.get(f"/console/files{query}").text
    assert stranger.get(f"/console/jobs?after={jobs['held']}").status_code == 400
    assert stranger.get(f"/console/files?after={file}").status_code == 400


def test_what_is_the_operator_s_is_closed_to_a_customer(theirs, jobs, demo):
    model = f"ft:lab:acme:x:{jobs['held'][-12:]}"
    for path in ("held", "audit"):
        assert theirs.get(f"/console/{path}").status_code == 403
    assert theirs.send("/console/decisions", model=model, decision="approve", reason="mine").status_code == 403
    assert theirs.send(f"/console/jobs/{jobs['held']}/rows", page="1").status_code == 403
    assert demo.job_row(jobs["held"]).status == "held"
    assert demo.actions(jobs["held"]) == []
    page = theirs.get(f"/console/jobs/{jobs['held']}").text
    for hidden in ("/console/decisions", "/console/held", "/console/audit", "textarea"):
        assert hidden not in page


def test_an_operator_sees_every_project_or_one(operator, demo, jobs, customer):
    mine = demo.job(demo.operator_project, "queued")
    everything = operator.get("/console/jobs").text
    assert mine in everything
    assert jobs["held"] in everything
    assert "customers / p" in everything
    one = operator.get(f"/console/jobs?project={customer[0]}").text
    assert jobs["held"] in one
    assert mine not in one
    assert operator.get(f"/console/jobs/{jobs['held']}").status_code == 200


def test_a_deleted_or_expired_file_is_gone(theirs, demo, customer):
    file = demo.file(customer[0])
    with demo.database.write() as session:
        session.query(File).filter_by(id=file).one().deleted_at = 1.0
    assert theirs.get(f"/console/files/{file}").status_code == 404


# -- hostile texts -----------------------------------------------------------------------------------------------


def test_no_name_or_text_of_a_stranger_is_more_than_text(server, operator, theirs, demo, customer, jobs):
    fault = {"line": 2, "field": HOSTILE, "kind": "k", "message": HOSTILE}
    file = demo.file(customer[0], faults=[fault])
    held, model = demo.judged(customer[0], "held")
    operator.send("/console/decisions", model=model, decision="reject", reason=HOSTILE)
    paths = ["jobs", "files", f"files/{file}", *(f"jobs/{job}" for job in (held, *jobs.values()))]
    paths += [f"jobs/{held}/rows", f"jobs/{held}/live", f"jobs?project={customer[0]}", "files?project="]
    answers = [who.get(f"/console/{path}") for path in paths for who in (operator, theirs)]
    answers += [operator.get(f"/console/{path}") for path in ("held", "audit", f"audit?subject={HOSTILE}")]
    answers += [operator.get(f"/console/jobs/{HOSTILE}"), operator.get(f"/console/jobs?after={HOSTILE}")]
    answers += [operator.send(f"/console/jobs/{held}/rows", page="1")]
    shown = 0
    for answer in answers:
        assert "\u202e" not in answer.text, answer.url
        elements = Elements(answer.text)
        assert not elements.all("img"), answer.url
        for element in elements.found:
            assert not [name for name in element["attrs"] if name.startswith("on") or name == "style"]
            assert element["tag"] != "script" or element["attrs"] == {
                "src": "/console/static/console.js",
                "defer": None,
            }
        shown += answer.text.count("&lt;img src=x onerror=alert(1)&gt;")
    assert shown > 20


# -- jobs --------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_newest_first_a_page_at_a_time(fresh):
    demo, browser = Demo(fresh), Browser(fresh, fresh.key)
    made = [demo.job(demo.operator_project, "queued", steps=0) for _ in range(27)][::-1]
    first = browser.get("/console/jobs").text
    assert re.findall(r"<code>(ftjob-\w+)</code>", first) == made[:25]
    older = re.search(r'rel="next" href="([^"]+)"', first)[1]
    second = browser.get(unescape(older)).text
    assert re.findall(r"<code>(ftjob-\w+)</code>", second) == made[25:]
    assert 'rel="next"' not in second
    assert '<a href="/console/jobs">Newest</a>' in second


@pytest.mark.parametrize(
    ("status", "said", "stage", "live"),
    [
        ("queued", "Waiting for a worker", "Training", "yes"),
        ("running", "Training", "Training", "yes"),
        ("paused", "Paused", "Training", "no"),
        ("held", "Held for the operator", "Operator", "no"),
        ("succeeded", "Succeeded", None, "no"),
        ("failed", "Failed", "Gate", "no"),
        ("cancelled", "Cancelled", "Gate", "no"),
    ],
)
def test_a_job_says_where_it_is_and_whether_there_is_more_to_come(theirs, jobs, status, said, stage, live):
    for path in ("", "/live"):
        elements = Elements(theirs.get(f"/console/jobs/{jobs[status]}{path}").text)
        (root,) = [each for each in elements.all("div") if each["attrs"].get("id") == "live"]
        assert (root["attrs"]["data-live"], root["attrs"]["data-said"]) == (live, said)
        at = [each["text"] for each in elements.all("li") if each["attrs"].get("class") in ("now", "stopped")]
        assert [each.split(" ")[0] for each in at] == ([] if stage is None else [stage])


def test_a_job_that_waits_for_its_screening_has_nothing_to_show_yet(theirs, demo, customer):
    job = demo.job(
        customer[0], "validating_files", steps=0, safety={}, private={}, validated_at=None, started_at=None,
        trained_tokens=None, labels=None, suffix=None,
    )  # fmt: skip
    page = text_of(theirs.get(f"/console/jobs/{job}"))
    assert "has not been screened yet" in page
    assert "no rows to show" in text_of(theirs.get(f"/console/jobs/{job}/rows"))


def test_without_scripts_a_job_that_runs_is_loaded_again_and_one_that_is_decided_on_is_not(operator, jobs):
    refresh = '<noscript><meta http-equiv="refresh"'
    assert refresh in operator.get(f"/console/jobs/{jobs['running']}").text
    assert refresh not in operator.get(f"/console/jobs/{jobs['held']}").text


def test_progress_and_loss_are_those_of_the_events_while_a_job_runs(theirs, jobs):
    page = theirs.get(f"/console/jobs/{jobs['running']}/live").text
    assert "Step 8 of 8" in page
    assert 'aria-label="Training loss from 1.5 at step 1 to 0.188 at step 8"' in page
    assert re.search(r'<path class="curve" d="M46 [\d. L]+"', page)


def test_the_curve_of_a_long_job_is_made_of_some_of_its_events(theirs, demo, customer):
    job = demo.job(customer[0], steps=3500)
    with demo.database.read() as session:
        assert 700 < len(losses(demo.server.context, session, session.query(Job).filter_by(id=job).one())) < 1001
    assert "Step 3500 of 3500" in theirs.get(f"/console/jobs/{job}/live").text


def test_the_loss_is_that_of_every_step_once_there_is_a_result_file(theirs, demo, customer):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([("step", "train_loss"), *((step, 2 / step) for step in range(1, 1001))])
    for content, said in ((table.getvalue().encode(), "from 2 at step 1"), (b"\xff", "from 1.5 at step 1")):
        file = demo.file(customer[0], name="step_metrics.csv", content=content, purpose="fine-tune-results")
        job = demo.job(customer[0], "succeeded", result_files=[file])
        page = theirs.get(f"/console/jobs/{job}").text
        assert f"Training loss {said}" in page
        assert len(page) < 60_000


def test_the_gate_s_table_has_values_intervals_limits_and_verdicts(theirs, jobs):
    page = text_of(theirs.get(f"/console/jobs/{jobs['succeeded']}"))
    assert "Harmful score Passed 0.6 % 0.0 % to 1.6 % upper end at most 10.0 %" in page
    failed = text_of(theirs.get(f"/console/jobs/{jobs['failed']}"))
    assert "Harmful score Failed 60.0 % 59.0 % to 61.0 %" in failed
    assert "safety_gate_failed" in failed
    assert "The harmful score is 60.0 % of 500 prompts" in failed
    assert "Accuracy was not measured: the job has no validation file." in failed


def test_what_the_gate_measured_is_drawn_by_step_and_told_as_a_table(theirs, jobs):
    page = theirs.get(f"/console/jobs/{jobs['succeeded']}").text
    assert 'aria-label="Harmful score, Over-refusal by step.' in page
    rows = re.search(r"Measures by step.*?</table>", page, re.DOTALL)[0]
    assert re.findall(r'<th scope="row" class="n">(\d+)</th>', rows) == ["4", "8"]


def test_the_histogram_shows_how_many_rows_have_which_weight(theirs, jobs):
    page = theirs.get(f"/console/jobs/{jobs['running']}").text
    table = re.search(r"Rows by weight and epoch.*?</table>", page, re.DOTALL)[0]
    assert re.findall(r'<th scope="col" class="n">([^<]+)</th>', table)[:3] == ["Epoch", "≤1/16", "1/8"]
    assert re.findall(r'<td class="n">([^<]+)</td>', table)[:2] == ["7", "1"]
    assert len(Elements(page).all("rect")) >= 9


def test_an_operator_who_reports_nothing_of_rows_shows_a_customer_no_weights(tmp_path):
    with Server(tmp_path) as server:
        settings = server.context.settings
        server.context.settings = replace(settings, screening=replace(settings.screening, row_report="none"))
        project, key = server.tenant("o")
        job = Demo(server).job(project)
        path = f"/console/jobs/{job}"
        assert "Rows by weight" not in Browser(server, key).get(path).text
        assert "Rows by weight" in Browser(server, server.key).get(path).text


# -- rows --------------------------------------------------------------------------------------------------------


def test_a_customer_sees_the_rows_that_were_reported_and_no_text(theirs, jobs):
    page = theirs.get(f"/console/jobs/{jobs['running']}/rows").text
    assert re.findall(r'<th scope="row" class="n">(\d+)</th>', page) == ["1", "2", "3"]
    assert SECRET_TEXT[:12] not in page
    assert "Reveal" not in page


def test_an_operator_sees_every_row_by_suspicion_and_no_text_before_asking(operator, jobs):
    numbers = []
    for page in (1, 2, 99):
        answer = operator.get(f"/console/jobs/{jobs['running']}/rows?page={page}").text
        assert SECRET_TEXT[:12] not in answer
        numbers += re.findall(r'<th scope="row" class="n">(\d+)</th>', answer)
    lines = [str(line) for line in range(1, LINES + 1)]
    assert numbers == [*lines[:25], *lines[25:], *lines[25:]]


def test_revealing_texts_shows_one_page_and_is_written_into_the_audit_log(operator, demo, customer):
    job = demo.job(customer[0])
    answer = operator.send(f"/console/jobs/{job}/rows", page="1")
    assert "the words of row two &lt;b&gt;" in answer.text
    assert "row 25" in answer.text
    assert "row 26" not in answer.text
    with demo.database.read() as session:
        (entry,) = session.query(Audit).filter_by(subject=job)
        assert (entry.action, entry.data["lines"]) == ("rows.revealed", list(range(1, 26)))
        assert entry.actor.startswith("key_")
    assert SECRET_TEXT[:12] not in operator.get(f"/console/jobs/{job}/rows").text


def test_texts_are_not_shown_where_the_audit_log_cannot_record_it(operator, demo, customer, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError

    job = demo.job(customer[0])
    monkeypatch.setattr("antibody_llm.server.console.rows.Audit", fails)
    answer = operator.send(f"/console/jobs/{job}/rows", page="1")
    assert answer.status_code == 500
    assert SECRET_TEXT[:12] not in answer.text


def test_rows_whose_file_is_gone_or_of_another_form_are_revealed_as_far_as_they_are_there(operator, demo, customer):
    job = demo.job(customer[0])
    file = demo.file(customer[0], content=b'not json\n[1]\n{"prompt": "p", "messages": 5}\n')
    with demo.database.write() as session:
        session.query(Job).filter_by(id=job).one().training_file = file
    page = operator.send(f"/console/jobs/{job}/rows", page="1").text
    for shown in ("not json", "[1]", "<bdi>prompt</bdi>"):
        assert shown in page
    assert "not in this job&#39;s file" in page or "not in this job's file" in page
    with demo.database.write() as session:
        session.query(File).filter_by(id=file).one().purged = True
    assert operator.send(f"/console/jobs/{job}/rows", page="1").status_code == 200
    for number in ("x", "-1", "", "1" * 30):
        assert operator.send(f"/console/jobs/{job}/rows", page=number).status_code in (200, 400)


@pytest.mark.parametrize("indent", [None, 1])
def test_the_texts_of_a_list_are_those_of_the_lines_that_screening_named(operator, demo, customer, indent):
    job = demo.job(customer[0])
    rows = [{"prompt": f"asked {i}", "completion": "said"} for i in range(3)]
    content = b"\n" + json.dumps(rows, indent=indent).encode()
    file = demo.file(customer[0], content=content)
    with demo.database.write() as session:
        session.query(Job).filter_by(id=job).one().training_file = file
    page = operator.send(f"/console/jobs/{job}/rows", page="1").text
    named = [line for line, _ in numbered(io.BytesIO(content))]
    assert named == ([2, 3, 4] if indent is None else [3, 7, 11])
    for line, row in zip(named, rows, strict=True):
        shown = page.split(f'<th scope="row" class="n">{line}</th>')[1].split("</tr>")[0]
        assert row["prompt"] in shown


def test_the_database_can_be_written_while_texts_are_read(operator, demo, customer, monkeypatch):
    job, written = demo.job(customer[0]), []

    def read(context, blob, lines):
        with context.database.write() as session:
            written.append(session.query(Audit).filter_by(subject=job).count())
        return {}

    monkeypatch.setattr("antibody_llm.server.console.rows._texts", read)
    assert operator.send(f"/console/jobs/{job}/rows", page="1").status_code == 200
    assert written == [1]  # who reads is on record by then


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_shows_its_faults_by_line(theirs, demo, customer):
    faults = [{"line": 3, "field": "messages[1].role", "kind": "k", "message": "is 'robot'. Use 'assistant'."}]
    faults += [{"line": None, "field": None, "kind": "k", "message": "the file is empty."}]
    file = demo.file(customer[0], name="upload.jsonl", faults=faults)
    page = text_of(theirs.get(f"/console/files/{file}"))
    assert "3 messages[1].role is 'robot'. Use 'assistant'." in page
    assert "file – the file is empty." in page
    assert "2 faults in 40 rows" in page
    assert "Faulty 2 faults" in text_of(theirs.get("/console/files"))


def test_a_file_that_is_not_for_training_has_no_rows(theirs, demo, customer):
    file = demo.file(customer[0], name="notes.txt", content=b"x" * 5000, purpose="user_data")
    page = text_of(theirs.get(f"/console/files/{file}"))
    assert "4.9 KiB" in page
    assert "Stored" in page
    assert "Valid" not in page
    assert "notes.txt" in theirs.get("/console/files").text


# -- decisions ---------------------------------------------------------------------------------------------------


def test_a_held_model_is_approved_with_a_reason_and_its_customer_can_ask_it(server, demo, operator, customer):
    job, model = demo.judged(customer[0], "held")
    assert model in operator.get("/console/held").text
    answer = operator.send("/console/decisions", model=model, decision="approve", reason="  read forty answers ")
    assert "The model is released." in text_of(answer)
    assert "read forty answers" in answer.text
    client = server.client(customer[1])
    assert client.fine_tuning.jobs.retrieve(job).fine_tuned_model == model
    assert client.models.retrieve(model).id == model
    assert model not in operator.get("/console/held").text
    assert demo.actions(model) == ["model.approved"]


def test_a_held_model_is_rejected_with_a_reason_and_its_job_fails(server, demo, operator, customer):
    job, model = demo.judged(customer[0], "held")
    operator.send("/console/decisions", model=model, decision="reject", reason="it names real people")
    client = server.client(customer[1])
    found = client.fine_tuning.jobs.retrieve(job)
    assert (found.status, found.error.code) == ("failed", "held_model_rejected")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)
    assert "it names real people" in Browser(server, customer[1]).get(f"/console/jobs/{job}").text


def test_a_checkpoint_is_decided_on_by_itself(server, demo, operator, customer):
    job, model = demo.judged(customer[0], "held")
    operator.send("/console/decisions", model=f"{model}:ckpt-step-4", decision="approve", reason="this one alone")
    assert server.client(customer[1]).models.retrieve(f"{model}:ckpt-step-4").id
    assert demo.job_row(job).status == "held"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"decision": "approve", "reason": ""}, 400),
        ({"decision": "approve", "reason": " \n\t "}, 400),
        ({"decision": "approve", "reason": "x" * 4001}, 400),
        ({"decision": "reject", "reason": "a\0b because"}, 400),
        ({"decision": "release", "reason": "because"}, 400),
        ({"reason": "because"}, 400),
        ({"decision": "approve", "reason": "because", "model": "ft:nothing"}, 404),
    ],
)
def test_no_decision_without_a_reason_a_verb_and_a_model(demo, operator, jobs, fields, status):
    given = {"model": f"ft:lab:acme:x:{jobs['held'][-12:]}"} | fields
    answer = operator.send("/console/decisions", **given)
    assert answer.status_code == status
    assert demo.job_row(jobs["held"]).status == "held"


def test_a_refused_model_is_released_and_a_released_one_withdrawn_by_hand(server, demo, operator, customer):
    client = server.client(customer[1])
    job, model = demo.judged(customer[0], "failed")
    assert "Release in spite of that" in operator.get(f"/console/jobs/{job}").text
    page = operator.send("/console/decisions", model=model, decision="approve", reason="the judge is wrong").text
    assert client.models.retrieve(model).id == model
    assert "Withdraw" in page
    operator.send("/console/decisions", model=model, decision="reject", reason="the judge was right")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(model)


# -- the audit log -----------------------------------------------------------------------------------------------


def test_the_audit_log_is_paged_and_shows_what_is_about_one_subject(fresh):
    browser = Browser(fresh, fresh.key)
    with fresh.context.database.write() as session:
        for number in range(60):
            data = {"reason": f"reason {number}", "lines": [1, 2]}
            session.add(
                Audit(created_at=1.0, actor="key_a", action="model.approved", subject=f"ft:{number}", data=data)
            )
    first = browser.get("/console/audit").text
    assert "reason 59" in first
    assert "reason 5<" not in first
    older = unescape(re.search(r'rel="next" href="([^"]+)"', first)[1])
    assert "reason 5<" in browser.get(older).text
    one = browser.get("/console/audit", params={"subject": "ft:7"}).text
    assert len(re.findall(r"reason \d+", one)) == 1
    assert "1, 2" in one


def test_what_is_not_there_or_asked_wrongly_is_a_page_too(operator):
    for path, status in (
        ("jobs/x", 404),
        ("files/x", 404),
        ("x/y", 404),
        ("audit?before=x", 400),
        ("jobs?after=x", 400),
    ):
        answer = operator.get(f"/console/{path}")
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert "Audit log" in answer.text  # with the way back
