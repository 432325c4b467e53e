"""Every error in the API's own shape: ours, the framework's, and the unexpected."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import AntibodyError
from ..parsing import nearest
from ..text import cut, escaped, quoted

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""``error.type`` by status; other refusals are ``invalid_request_error``."""


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status code.
        message: What happened, where, and how to fix it.
        code: A short name that programs test.
        param: The field or parameter of the request.
        headers: Headers to add to the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, cut(escaped(message)), code, param
        self.headers = dict(headers or {})


def not_found(kind: str, name: str, *, param: str | None = None) -> ApiError:
    """The answer for an id that does not exist, or is another tenant's: nobody learns which."""
    return ApiError(404, f"No such {kind}: {quoted(name)}.", code=f"{kind.replace(' ', '_')}_not_found", param=param)


def error_response(error: ApiError) -> JSONResponse:
    """The error as the client reads it."""
    return JSONResponse(
        error_body(error.status, error.message, code=error.code, param=error.param), error.status, error.headers
    )


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def handle_errors(app: FastAPI) -> None:
    """Replace the framework's handlers."""
    app.add_exception_handler(ApiError, _ours)
    app.add_exception_handler(AntibodyError, _users)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def of_user(error: AntibodyError) -> ApiError:
    """An error that a user can fix, as an answer."""
    return ApiError(400, str(error), code="invalid_value", param=getattr(error, "field", None) or None)


async def _ours(request: Request, error: Any) -> JSONResponse:
    return error_response(error)


async def _users(request: Request, error: Any) -> JSONResponse:
    return error_response(of_user(error))


async def _http(request: Request, error: Any) -> JSONResponse:
    if (cause := getattr(request.state, "body_error", None)) is not None:  # the framework hid it behind a 400
        return error_response(cause)
    messages = {
        404: f"No such URL: {request.method} {quoted(request.url.path)}. The API's paths begin with /v1.",
        405: f"{request.method} is not possible on {quoted(request.url.path)}.",
    }
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    message = messages.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(
        ApiError(error.status_code, message, code=codes.get(error.status_code, "invalid_request"), headers=headers)
    )


async def _invalid(request: Request, error: Any) -> JSONResponse:
    return error_response(_what_is_invalid(error.errors()))


def _what_is_invalid(problems: list[dict[str, Any]]) -> ApiError:
    """The first problem in full, and how many more there are."""
    first = problems[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = _dotted(place) or None
    kind, context = first["type"], first.get("ctx") or {}
    if kind in ("unknown_parameter", "extra_forbidden"):
        name, known = context.get("name") or str(place.pop() if place else ""), context.get("known") or []
        param = _dotted([*place, name])
        message = f"Unknown parameter: '{param}'{nearest(name, known)}"
        if known:
            message += f" Known: {', '.join(known)}."
        code = "unknown_parameter"
    elif kind == "missing":
        where = f": '{param}'" if param else " (the body is empty or not sent as application/json)"
        message, code = f"Missing required parameter{where}.", "missing_required_parameter"
    elif kind == "json_invalid":
        message = f"The body is not JSON ({context.get('error', 'broken')}, character {first['loc'][-1]})."
        param, code = None, "invalid_json"
    else:
        why = str(first["msg"]).removeprefix("Value error, ")
        found = "" if isinstance(first.get("input"), dict | list) else f" (got {quoted(first.get('input'))})"
        message, code = f"Invalid value for '{param}'{found}: {why[:1].lower()}{why[1:]}.", "invalid_value"
        if param is None:
            message = f"Invalid request{found}: {why}. Send a JSON object with Content-Type: application/json."
    if len(problems) > 1:
        message += f" ({len(problems) - 1} more: {', '.join(_places(problems[1:6]))})"
    return ApiError(400, message, code=code, param=param)


def _places(problems: list[dict[str, Any]]) -> list[str]:
    return [_dotted(problem["loc"][1:]) or "body" for problem in problems]


def _dotted(place: list[Any]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return escaped(text)[:200]
