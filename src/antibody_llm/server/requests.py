"""What surrounds every request: an id, a limit on its body, a log line, metrics, and an answer to the unexpected.

A pure ASGI layer, so that bodies stream through it. The log holds no body, no query and no key.
"""

import json
import logging
import re
import secrets
import time
import traceback
from typing import Any

from anyio import fail_after
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .context import Context
from .errors import ApiError, error_body
from .traces import Span

log = logging.getLogger("antibody.server")

OWN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)/?")
"""Paths whose bodies are uploads, with limits of their own."""


class Requests:
    """The layer."""

    def __init__(self, app: Any, context: Context) -> None:
        self.app, self.context = app, context

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if OWN_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        span = self.context.traces.request(scope["method"], headers) if self.context.traces else None
        begun, status = time.perf_counter(), 0
        limits = self.context.settings.limits
        most = limits.body_bytes

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(round((time.perf_counter() - begun) * 1000)).encode()),
                ]
            await send(message)

        try:
            refused = _refused(scope)
            if refused is not None:
                await _say(answer, refused)
            else:
                limited = _limited(scope, receive, None if _streams(scope) else most, limits.idle_seconds)
                await self.app(scope, limited, answer)
        except ApiError as error:  # of the body's limit, met where no route could catch it
            if status:
                raise
            await _say(answer, error)
        except Exception as error:
            log.error(json.dumps({"event": "unexpected", "request_id": request_id, "where": where(error)}))
            if status:
                raise
            if isinstance(error, OperationalError | PoolTimeout):
                text = "The server's database is busy or away. Try again in a moment."
                await _say(answer, ApiError(503, text, code="database_unavailable", headers={"retry-after": "2"}))
                return
            message = f"The server failed. Try again; if it fails again, report the request id {request_id}."
            await _say(answer, ApiError(500, message, code="internal_error"))
        finally:
            self._record(scope, request_id, status, time.perf_counter() - begun, span)

    def _record(self, scope: Any, request_id: str, status: int, seconds: float, span: Span | None) -> None:
        route = getattr(scope.get("route"), "path", "none")
        metrics = self.context.metrics
        metrics.requests.labels(scope["method"], route, status).inc()
        metrics.seconds.labels(scope["method"], route).observe(seconds)
        principal = scope["state"].get("principal")
        entry = {
            "event": "request",
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "key": None if principal is None else principal.key_id,
            "project": None if principal is None else principal.project_id,
        }
        if span is not None:
            entry["trace_id"] = span.trace_id
            at = {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
            span.set(**at, **{f"antibody.{name}": entry[name] for name in ("request_id", "key", "project")})
            span.end(f"{scope['method']} {route}", failed=status >= 500 or not status)
        log.info(json.dumps(entry))


def _refused(scope: Any) -> ApiError | None:
    """Paths and queries that no database takes."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        return ApiError(400, "The URL holds a NUL character. Remove it.", code="invalid_url")
    return None


def _streams(scope: Any) -> bool:
    return scope["method"] == "POST" and STREAMED.fullmatch(scope["path"]) is not None


def _limited(scope: Any, receive: Any, most: int | None, idle: float) -> Any:
    """``receive`` that refuses a body longer than ``most`` bytes, and one that pauses for ``idle`` seconds."""
    received, ended = 0, False

    def refuse(error: ApiError) -> ApiError:
        scope["state"]["body_error"] = error  # the framework may hide it behind a 400
        return error

    async def limited() -> Any:
        nonlocal received, ended
        if ended:  # only the end of the connection can follow, and it may take its time
            return await receive()
        try:
            with fail_after(idle):
                message = await receive()
        except TimeoutError:
            text = f"The body paused for {idle} seconds. Send it again."
            raise refuse(ApiError(408, text, code="request_timeout")) from None
        received += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if most is not None and received > most:
            text = f"The body is longer than {most} bytes. Upload files with POST /v1/files."
            raise refuse(ApiError(413, text, code="too_large"))
        return message

    return limited


async def _say(send: Any, error: ApiError) -> None:
    body = json.dumps(error_body(error.status, error.message, code=error.code, param=error.param)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def where(error: BaseException) -> list[str]:
    """The kinds and places of an error and its causes, without their texts, which may repeat what a customer sent."""
    lines: list[str] = []
    at: BaseException | None = error
    while at is not None and len(lines) < 100:
        lines.append(type(at).__qualname__)
        lines += [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(at.__traceback__)[-20:]
        ]
        at = at.__cause__ or at.__context__
    return lines
