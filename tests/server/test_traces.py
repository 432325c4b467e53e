"""Spans of requests and stages, kept in memory."""

import json
import logging
import os

import pytest

from antibody_llm.errors import ConfigError
from antibody_llm.server import traces as module
from antibody_llm.server.settings import TelemetrySettings
from antibody_llm.server.traces import TracedExecutor, Traces, make_traces, provider_of
from tests.server.running import Server, upload
from tests.server.stages_here import Script

SECRET = "a sentence of the upload"


@pytest.fixture
def spans():
    """The traces, and the spans that have ended."""
    try:
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    except ImportError as missing:
        if os.environ.get("CI"):
            pytest.fail(
                f"OpenTelemetry is not installed, and CI needs it: pip install 'antibody-llm[traces]' ({missing})"
            )
        pytest.skip("OpenTelemetry is not installed: pip install 'antibody-llm[traces]'")
    exporter = InMemorySpanExporter()
    return Traces(provider_of(SimpleSpanProcessor(exporter))), exporter.get_finished_spans


@pytest.fixture
def traced(tmp_path, spans):
    """A server that traces, and the spans that have ended."""
    with Server(tmp_path) as server:
        server.context.traces = spans[0]
        yield server, spans[1]


def test_a_request_is_a_span_with_its_route_status_and_ids_and_its_log_line_names_the_trace(traced, caplog):
    server, ended = traced
    caplog.set_level(logging.INFO, "antibody.server")
    answer = server.http.get("/v1/fine_tuning/jobs/ftjob-none")
    (span,) = ended()
    assert span.name == "GET /fine_tuning/jobs/{job_id}"
    assert span.attributes["http.response.status_code"] == 404
    assert span.attributes["antibody.request_id"] == answer.headers["x-request-id"]
    assert span.attributes["antibody.project"].startswith("proj_")
    entry = json.loads(caplog.records[-1].getMessage())
    assert entry["trace_id"] == f"{span.context.trace_id:032x}"


def test_a_request_joins_the_trace_of_its_client(traced):
    server, ended = traced
    parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    server.http.get("/v1/models", headers={"traceparent": parent})
    server.http.get("/v1/models", headers={"traceparent": "nonsense"})
    assert f"{ended()[0].context.trace_id:032x}" == parent[3:35]
    assert ended()[1].parent is None


def test_a_server_that_fails_marks_the_span_without_the_text_of_the_error(traced, monkeypatch):
    server, ended = traced

    def fail(*_):
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(server.context.database, "read", fail)
    assert server.http.get("/v1/models").status_code == 500
    (span,) = ended()
    assert span.status.status_code.name == "ERROR"
    assert SECRET not in span.to_json()


def test_no_span_holds_a_text_of_the_customer(traced):
    server, ended = traced
    client = server.client()
    row = {"messages": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": SECRET}]}
    content = (json.dumps(row) + "\n").encode() * 12
    client.fine_tuning.jobs.create(model="lab", training_file=upload(client, content, name=f"{SECRET}.jsonl").id)
    assert len(ended()) == 2
    assert SECRET not in "".join(span.to_json() for span in ended())


def test_stages_of_one_job_share_a_trace_and_say_how_they_ended(spans, tmp_path, caplog):
    traces, ended = spans
    caplog.set_level(logging.INFO, "antibody.server")
    script = Script(
        screen=lambda settings: [{"event": "result"}],
        train=lambda settings: [{"event": "step"}, -9],
        measure=lambda settings: [{"event": "failed", "kind": "DataError", "message": SECRET}],
    )
    executor = TracedExecutor(script, traces)
    for stage, job in (("screen", "ftjob-1"), ("train", "ftjob-1"), ("measure", "ftjob-2")):
        process = executor.start({"stage": stage, "job": job, "settings": {"data": SECRET}}, folder=tmp_path)
        list(process.events())
        process.wait()
    screen, train, measure = ended()
    assert [span.name for span in ended()] == ["stage screen", "stage train", "stage measure"]
    assert [span.attributes["antibody.end"] for span in ended()] == ["result", "died", "failed"]
    assert [span.status.status_code.name for span in ended()] == ["UNSET", "ERROR", "ERROR"]
    assert screen.context.trace_id == train.context.trace_id != measure.context.trace_id
    assert train.attributes["antibody.job"] == "ftjob-1"
    assert json.loads(caplog.records[0].getMessage())["trace_id"] == f"{screen.context.trace_id:032x}"
    assert SECRET not in "".join(span.to_json() for span in ended()) + caplog.text


def test_a_stage_that_cannot_be_started_ends_its_span(spans, tmp_path):
    traces, ended = spans
    with pytest.raises(KeyError):
        TracedExecutor(Script(), traces).start({"stage": "x", "job": "j", "settings": {}}, folder=tmp_path)
    assert ended()[0].status.status_code.name == "ERROR"


# -- the operator's choice ---------------------------------------------------------------------------------------------


def test_spans_go_to_the_collector_that_the_settings_or_the_standard_variable_name(spans, monkeypatch):
    def endpoint(traces):
        exporter = traces.provider._active_span_processor._span_processors[0].span_exporter
        traces.provider.shutdown()
        return exporter._endpoint

    for name in module.STANDARD:
        monkeypatch.delenv(name, raising=False)
    assert make_traces(TelemetrySettings()) is None
    assert endpoint(make_traces(TelemetrySettings(otlp="http://c:4318/"))) == "http://c:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://d:4318")
    assert endpoint(make_traces(TelemetrySettings())) == "http://d:4318/v1/traces"


def test_a_collector_without_its_packages_is_refused_where_the_settings_name_it(monkeypatch, caplog):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"antibody-llm\[traces\]"):
        make_traces(TelemetrySettings(otlp="http://c:4318"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://d:4318")
    assert make_traces(TelemetrySettings()) is None
    assert "antibody-llm[traces]" in caplog.text


def test_a_collector_is_named_by_a_url():
    with pytest.raises(ConfigError, match="http://collector:4318"):
        TelemetrySettings(otlp="collector:4318")
