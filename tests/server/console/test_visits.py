"""Signing in, forms that come from elsewhere, and what every answer of the console says to a browser."""

import json

import pytest

from antibody_llm.server.auth import digest
from antibody_llm.server.console.render import HEADERS
from antibody_llm.server.console.visits import COOKIE, VISIT_SECONDS
from antibody_llm.server.database.tables import Audit
from antibody_llm.server.database.visits import Visit
from antibody_llm.server.settings import Limits
from tests.server.console.demo import Browser, Demo, token
from tests.server.running import Server

PAGES = ["jobs", "jobs/x", "jobs/x/live", "jobs/x/rows", "files", "files/x", "held", "audit"]
FORMS = ["sign-out", "decisions", "jobs/x/rows"]


@pytest.mark.parametrize("path", PAGES)
def test_without_signing_in_every_page_leads_to_the_form_and_says_nothing(server, path):
    answer = Browser(server).get(f"/console/{path}", follow_redirects=False)
    assert (answer.status_code, answer.text) == (303, "")
    assert answer.headers["location"] == f"/console/sign-in?next=/console/{path}"


@pytest.mark.parametrize("path", FORMS)
def test_without_signing_in_no_form_does_anything(server, path):
    browser = Browser(server)
    given = {"form_token": token(browser.get("/console/sign-in").text)}
    answer = browser.http.post(f"/console/{path}", data=given, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/console/sign-in")


@pytest.mark.parametrize("path", PAGES)
def test_a_key_in_a_header_or_in_the_url_opens_no_page(server, path):
    headers = {"authorization": f"Bearer {server.key}"}
    answer = Browser(server).get(f"/console/{path}?key={server.key}", headers=headers, follow_redirects=False)
    assert answer.status_code == 303


def test_a_cookie_of_the_console_opens_nothing_of_the_api(operator):
    assert operator.get("/v1/models").status_code == 401


def test_signing_in_gives_a_cookie_that_no_script_and_no_other_site_can_use(fresh):
    browser = Browser(fresh)
    page = browser.get("/console/sign-in")
    given = {"key": fresh.key, "form_token": token(page.text)}
    answer = browser.http.post("/console/sign-in", data=given, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/jobs")
    cookie = answer.headers["set-cookie"]
    for part in (f"{COOKIE}=", "HttpOnly", "SameSite=strict", "Path=/console", "Secure"):
        assert part in cookie
    for gone in ("expires", "max-age", fresh.key, digest(fresh.key)):
        assert gone not in cookie.lower()


def test_the_database_knows_a_visit_by_its_digest_alone(fresh):
    browser = Browser(fresh, fresh.key)
    with fresh.context.database.read() as session:
        assert [row.digest for row in session.query(Visit)] == [digest(browser.http.cookies[COOKIE])]
        (entry,) = session.query(Audit).filter_by(action="console.signed_in")
        assert entry.actor.startswith("key_")


@pytest.mark.parametrize("key", ["", "wrong", "sk-operator-<script>alert(1)</script>", "é" * 30])
def test_a_wrong_key_is_refused_and_its_end_at_most_is_repeated(server, key):
    browser = Browser(server)
    answer = browser.sign_in(key)
    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "<script>alert" not in answer.text
    assert len(key) < 5 or key not in answer.text
    assert COOKIE not in browser.http.cookies


def test_a_visit_ends_with_signing_out_with_its_key_and_after_half_a_day(fresh):
    def is_in(browser):
        return browser.get("/console/jobs", follow_redirects=False).status_code == 200

    key = fresh.tenant("guests")[1]
    browser, copy, other = Browser(fresh, key), Browser(fresh), Browser(fresh, key)
    copy.http.cookies.set(COOKIE, browser.http.cookies[COOKIE], domain="testserver.local", path="/console")
    assert is_in(copy)
    browser.send("/console/sign-out")
    assert [is_in(each) for each in (browser, copy, other)] == [False, False, True]
    fresh.offset = VISIT_SECONDS - 60
    assert is_in(other)
    fresh.offset = VISIT_SECONDS + 60
    answer = other.get("/console/jobs")
    assert "Your visit is over" in answer.text
    fresh.offset = 0
    again = Browser(fresh, key)
    mine = next(row for row in fresh.http.get("/v1/operator/keys").json()["data"] if row["hint"] == key[-4:])
    fresh.http.delete(f"/v1/operator/keys/{mine['id']}")
    assert not is_in(again)


def test_signing_in_removes_visits_that_are_over(fresh):
    Browser(fresh, fresh.key)
    fresh.offset = VISIT_SECONDS + 1
    Browser(fresh, fresh.key)
    with fresh.context.database.read() as session:
        assert session.query(Visit).count() == 1


@pytest.mark.parametrize("path", ["sign-in", *FORMS])
@pytest.mark.parametrize("forged", ["none", "wrong", "anothers", "from another site"])
def test_a_form_that_is_not_ours_is_refused(server, operator, path, forged):
    right = token(operator.get("/console/jobs").text)
    given = {"none": "", "wrong": "0" * 64, "anothers": token(Browser(server, server.key).get("/console/jobs").text)}
    headers = {"sec-fetch-site": "cross-site"} if forged == "from another site" else {}
    body = {"form_token": given.get(forged, right), "key": server.key, "decision": "approve", "reason": "because"}
    answer = operator.http.post(f"/console/{path}", data=body, headers=headers, follow_redirects=False)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert operator.get("/console/jobs").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"form_token": "x"}', "application/json", 400),
        (b"a=1", "text/plain", 400),
        (b"&".join(b"a=1" for _ in range(50)), "application/x-www-form-urlencoded", 400),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b"a=" + b"x" * 70_000, "application/x-www-form-urlencoded", 413),
        (b"a=" + b"x" * 9_000_000, "application/x-www-form-urlencoded", 413),
        (b"", "application/x-www-form-urlencoded", 403),
    ],
)
def test_what_is_no_form_is_refused_as_a_page(operator, body, kind, status):
    answer = operator.http.post("/console/decisions", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/console/../v1", "/consolex", "\\\\x", ""]
)
def test_signing_in_leads_nowhere_but_to_the_console(server, target):
    browser = Browser(server)
    page = browser.get("/console/sign-in", params={"next": target})
    assert "evil" not in page.text
    given = {"key": server.key, "form_token": token(page.text), "next": target}
    answer = browser.http.post("/console/sign-in", data=given, follow_redirects=False)
    assert answer.headers["location"] == "/console/jobs"


def test_whoever_has_signed_in_goes_on_to_the_page_that_was_asked_for(server, operator):
    answer = operator.get("/console/sign-in?next=/console/files", follow_redirects=False)
    assert answer.headers["location"] == "/console/files"
    assert operator.get("/console", follow_redirects=False).headers["location"] == "/console/jobs"


def test_the_console_counts_against_the_rate_of_the_key(tmp_path):
    with Server(tmp_path, limits=Limits(requests_per_minute=3)) as server:
        browser = Browser(server, server.key)  # signing in, and the page behind it
        assert browser.get("/console/jobs").status_code == 200
        answer = browser.get("/console/jobs")
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "Too many requests" in answer.text
        with pytest.raises(Exception, match="Too many requests"):
            server.client().models.list()


def test_every_answer_keeps_itself_to_itself(server, demo, operator):
    job, _ = demo.judged(demo.operator_project, "held")
    paths = [
        "jobs",
        f"jobs/{job}",
        f"jobs/{job}/rows",
        "files",
        "held",
        "audit",
        "nothing",
        "sign-in",
        "audit?before=x",
    ]
    answers = [operator.get(f"/console/{path}") for path in paths]
    answers += [Browser(server).get("/console/sign-in"), Browser(server).get("/console/jobs", follow_redirects=False)]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, answer.url
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_what_the_pages_load_is_there_for_everybody_and_nothing_else_is(server):
    browser = Browser(server)
    kinds = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        answer = browser.get(f"/console/static/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
    for name in ("..%2Frender.py", "console.css%00", "x.css", "..%2F..%2Fsettings.py"):
        answer = browser.get(f"/console/static/{name}", follow_redirects=False)
        assert answer.status_code in (303, 400, 404)


def test_the_log_of_a_request_has_no_key_and_no_form(fresh, caplog):
    caplog.set_level("INFO", logger="antibody.server")
    browser = Browser(fresh, fresh.key)
    _, model = Demo(fresh).judged(fresh.tenant("o")[0], "held")
    browser.send("/console/decisions", model=model, decision="approve", reason="a reason in words")
    routes = {json.loads(record.message)["route"] for record in caplog.records}
    assert routes == {"/console/sign-in", "/console/jobs", "/console/decisions", "/console/jobs/{job_id}"}
    for secret in (fresh.key, "a reason in words", browser.http.cookies[COOKIE]):
        assert secret not in caplog.text
