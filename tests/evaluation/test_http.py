import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.evaluation import http
from antibody_llm.evaluation.http import CallRefused, Endpoint, EndpointFailed
from tests.evaluation.scripted import serving

FINE = (200, {}, {"fine": True})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "FIRST_WAIT", 0.001)
    monkeypatch.delenv("A_KEY", raising=False)


def endpoint(url, **given):
    return Endpoint(url, key_variable="A_KEY", field="judges", **given)


def answers(url, num=1, **given):
    return dict(endpoint(url, **given).post_each("path", [{"n": n} for n in range(num)]))


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503])
def test_a_call_is_repeated_where_that_may_help(status):
    with serving(lambda number, path, body: FINE if number == 2 else (status, {}, {})) as served:
        assert answers(served.url) == {0: {"fine": True}}
    assert len(served.calls) == 3


def test_the_pause_is_as_long_as_retry_after_asks(monkeypatch):
    monkeypatch.setattr(http, "LONGEST_WAIT", 0.3)
    asked = iter(["0.2", "60", "nonsense"])
    with serving(lambda number, *_: FINE if number == 3 else (429, {"retry-after": next(asked)}, {})) as served:
        started = time.monotonic()
        answers(served.url)
    assert 0.5 < time.monotonic() - started < 2.0  # 0.2, then 0.3 for 60, then hardly any


def test_retry_after_may_be_a_date():
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < http._asked_pause(at) <= 30
    assert http._asked_pause("Fri, 01 Jan 2021 00:00:00 GMT") == 0
    assert http._asked_pause("3600") == http.LONGEST_WAIT
    assert http._asked_pause("nan") is None


def test_no_more_calls_than_allowed_run_at_a_time_and_every_answer_has_its_number():
    def slow(number, path, body):
        time.sleep(0.02)
        return 200, {}, body

    with serving(slow) as served:
        assert answers(served.url, 20, concurrency=3) == {n: {"n": n} for n in range(20)}
    assert served.most_at_a_time == 3


def test_an_endpoint_that_dies_yields_what_it_answered_and_then_fails():
    with serving(lambda number, *_: FINE if number < 5 else (500, {}, {"error": {"message": "overloaded"}})) as served:
        came, calls = {}, endpoint(served.url, concurrency=2, attempts=3).post_each("p", [{}] * 50)
        with pytest.raises(EndpointFailed, match=r"no usable answer after \d attempts \(status 500: overloaded\)"):
            came.update(calls)
    assert len(came) == 5
    assert len(served.calls) < 5 + 2 * 3 + 1


def test_an_endpoint_that_is_not_there_is_named():
    with serving(lambda *_: FINE) as served:
        pass
    with pytest.raises(EndpointFailed, match=r"127.0.0.1:\d+/v1: no usable answer after 2 attempts") as failed:
        answers(served.url, attempts=2)
    assert failed.value.field == "judges"


def test_a_late_answer_is_none():
    def late(*_):
        time.sleep(0.3)
        return FINE

    with serving(late) as served, pytest.raises(EndpointFailed, match="Timeout"):
        answers(served.url, timeout=0.05, attempts=2)


def test_one_refused_call_does_not_end_the_others_unless_it_is_the_first():
    def too_long(number, path, body):
        return (400, {}, {"error": {"message": "too long"}}) if body["n"] in refused else FINE

    refused = {3}
    with serving(too_long) as served:
        found = answers(served.url, 5)
    assert isinstance(found[3], CallRefused)
    assert "status 400: too long" in str(found[3])
    assert sorted(number for number, answer in found.items() if answer == {"fine": True}) == [0, 1, 2, 4]
    refused = {0}
    with serving(too_long) as served, pytest.raises(CallRefused, match="too long"):
        answers(served.url, 5)
    assert len(served.calls) == 1


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "Set the environment variable A_KEY"), (404, "Check the URL, up to and including /v1")]
)
def test_a_status_that_no_repeat_changes_ends_the_run_with_advice(status, advice):
    with serving(lambda *_: (status, {}, {})) as served, pytest.raises(EndpointFailed, match=advice):
        answers(served.url, 4)
    assert len(served.calls) == 1


def test_the_key_goes_into_its_header_and_into_no_message(monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    repeats = (403, {}, {"error": {"message": "the key sk-very-secret may not"}})
    with serving(lambda *_: repeats) as served, pytest.raises(EndpointFailed) as failed:
        answers(served.url)
    assert served.calls[0][2]["authorization"] == "Bearer sk-very-secret"
    assert "the key (the key) may not" in str(failed.value)
    assert "secret" not in str(failed.value)


def test_without_a_key_none_is_sent():
    with serving(lambda *_: FINE) as served:
        answers(served.url)
    assert "authorization" not in served.calls[0][2]


def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch):
    monkeypatch.setenv("A_KEY", "geheim\x1bß")
    with pytest.raises(ConfigError, match="A_KEY holds characters that no key has") as refused:
        endpoint("http://localhost/v1")
    assert "geheim" not in str(refused.value)


def test_a_urls_own_query_is_sent_with_every_call():
    with serving(lambda *_: FINE) as served:
        answers(f"{served.url}/?api-version=3")
    assert served.calls[0][0] == "/v1/path?api-version=3"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"null", b""])
def test_an_answer_that_is_no_object_is_an_empty_one(body):
    with serving(lambda *_: (200, {}, body)) as served:
        assert answers(served.url) == {0: {}}
