"""Pages from templates, with the headers that keep a page to itself, and errors as pages."""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from markupsafe import Markup

from ...text import escaped
from ..errors import ApiError
from .visits import SignInFirst, Visitor

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
TITLES = {
    400: "This cannot be done",
    401: "Sign in first",
    403: "Not allowed",
    404: "Nothing here",
    413: "Too long",
    429: "Too many requests",
}


def when(at: float | None) -> Markup:
    """A time that people and programs read, in UTC."""
    if at is None:
        return Markup("\N{EN DASH}")
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S")
    )


def percent(share: float | None) -> str:
    """A share with one digit behind the point."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def size(num_bytes: int) -> str:
    """A number of bytes as people read it."""
    amount, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:,.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:,.1f} {unit}"


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("antibody_llm.server.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Names and texts of strangers also lose what would turn the direction of writing or hide a part of them.
    made.filters |= {"visible": lambda text: escaped(str(text)), "when": when, "percent": percent, "size": size}
    return made


TEMPLATES = _environment()


def page(template: str, visitor: Visitor | None, *, code: int = 200, **values: Any) -> HTMLResponse:
    """A page.

    Args:
        template: Its name, without ``.html``.
        visitor: Who looks; None: nobody has signed in.
        code: The answer's HTTP status.
        values: What the template shows.
    """
    return HTMLResponse(TEMPLATES.get_template(f"{template}.html").render(visitor=visitor, **values), code)


def see(path: str) -> RedirectResponse:
    """Have the browser get another page, after a form or in place of this one."""
    return RedirectResponse(path, 303)


class Page(APIRoute):
    """A route whose errors are pages too, and all of whose answers have ``HEADERS``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with its errors caught."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except SignInFirst as first:
                response = _sign_in(request, first)
            except ApiError as error:
                response = _error(request, error)
            except RequestValidationError:
                response = _error(
                    request, ApiError(400, "The address is not one that this console makes. Start from its pages.")
                )
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            return response

        return answer


def _sign_in(request: Request, first: SignInFirst) -> Response:
    asked = f"next={quote(request.url.path)}" if request.method == "GET" else ""
    said = "said=over" if first.why else ""
    query = "&".join(filter(None, (asked, said)))
    return see(f"/console/sign-in{'?' + query if query else ''}")


def _error(request: Request, error: ApiError) -> Response:
    title = TITLES.get(error.status, "This did not work")
    response = page(
        "error", getattr(request.state, "visitor", None), code=error.status, title=title, message=error.message
    )
    response.headers.update({name: value for name, value in error.headers.items() if name != "www-authenticate"})
    return response
