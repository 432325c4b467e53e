"""OpenTelemetry traces of requests and of the stages of jobs, where an operator has a collector.

A span holds ids, names, times and statuses, and no text of a customer: no body, no query, no message of an error. Every
stage of a job is in one trace, whichever worker ran it, since the trace's id is made from the job's. Nothing of
OpenTelemetry is imported where no collector is named.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .settings import TelemetrySettings
from .working.executor import Executor, Process

log = logging.getLogger("antibody.server")

SERVICE = "antibody"
"""``service.name``, unless OTEL_SERVICE_NAME says another."""
STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables by which a collector is named everywhere."""


class Traces:
    """Makes spans.

    Args:
        provider: A ``TracerProvider`` of the SDK.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.propagate import get_global_textmap

        self.provider = provider
        self._tracer = provider.get_tracer("antibody_llm.server")
        self._propagator = get_global_textmap()

    def request(self, method: str, headers: Mapping[bytes, bytes]) -> "Span":
        """The span of a request, below its client's where the headers name one."""
        from opentelemetry.trace import SpanKind

        carrier = {name: headers[name.encode()].decode("latin-1") for name in _PASSED if name.encode() in headers}
        context = self._propagator.extract(carrier)
        return Span(self._tracer.start_span(method, context=context, kind=SpanKind.SERVER))

    def stage(self, name: str, job: str) -> "Span":
        """The span of a stage of a job."""
        from opentelemetry import trace

        made = sha256(job.encode()).digest()
        trace_id, span_id = int.from_bytes(made[:16], "big"), int.from_bytes(made[16:24], "big")
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        of_job = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        context = trace.set_span_in_context(trace.NonRecordingSpan(of_job))
        span = Span(self._tracer.start_span(f"stage {name}", context=context))
        span.set(**{"antibody.job": job, "antibody.stage": name})
        return span


class Span:
    """A span that is open."""

    def __init__(self, span: Any) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        """The trace as logs and collectors write it: 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def set(self, **attributes: str | int | float | None) -> None:
        """Set attributes; None is left out."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def end(self, name: str | None = None, *, failed: bool = False) -> None:
        """End it, under another name where that is known now."""
        from opentelemetry.trace import StatusCode

        if name is not None:
            self._span.update_name(name)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class TracedExecutor:
    """Another executor, with a span for each stage.

    Args:
        executor: Starts the stages.
        traces: Makes the spans.
    """

    def __init__(self, executor: Executor, traces: Traces) -> None:
        self.executor, self.traces = executor, traces

    def start(self, spec: Mapping[str, Any], *, folder: Path) -> "TracedProcess":
        """See ``Executor``."""
        span = self.traces.stage(spec["stage"], spec["job"])
        try:
            process = self.executor.start(spec, folder=folder)
        except BaseException:
            span.end(failed=True)
            raise
        return TracedProcess(process, span, {"event": "stage", "job": spec["job"], "stage": spec["stage"]})


class TracedProcess:
    """A stage with its span; see ``Process``."""

    def __init__(self, process: Process, span: Span, entry: Mapping[str, Any]) -> None:
        self._process, self._span, self._entry = process, span, entry
        self._end = "died"
        self.stop, self.kill = process.stop, process.kill

    def events(self) -> Iterator[dict[str, Any]]:
        """What it reports; its last event is its end."""
        for event in self._process.events():
            if event["event"] in ("result", "stopped", "failed"):
                self._end = event["event"]
            yield event

    def wait(self) -> int:
        """Its exit status; ends the span."""
        status = self._process.wait()
        self._span.set(**{"antibody.end": self._end}, **{"process.exit.code": status})
        self._span.end(failed=self._end not in ("result", "stopped"))
        log.info(json.dumps({**self._entry, "end": self._end, "trace_id": self._span.trace_id}))
        return status


def make_traces(settings: TelemetrySettings) -> Traces | None:
    """What sends spans to the operator's collector; None where there is none.

    Raises:
        ConfigError: the settings name a collector, and the packages that speak to it are not installed.
    """
    named = bool(settings.otlp)
    if not named and not any(os.environ.get(name) for name in STANDARD):
        return None
    if missing := lacking():
        if named:
            raise ConfigError(missing)
        log.warning(missing)  # a platform may set the variable for everybody
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=f"{settings.otlp.rstrip('/')}/v1/traces") if named else OTLPSpanExporter()
    return Traces(provider_of(BatchSpanProcessor(exporter)))


def provider_of(processor: Any) -> Any:
    """A provider of its own, not the process's: a library beside us may have set that."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    given = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(given))
    provider.add_span_processor(processor)
    return provider


def lacking() -> str:
    """What keeps traces from being sent; empty where nothing does."""
    for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"telemetry: {name} is not installed. Install it: pip install 'antibody-llm[traces]'"
    return ""


_PASSED = ("traceparent", "tracestate")
