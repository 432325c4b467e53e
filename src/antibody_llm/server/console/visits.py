"""Who looks at the console: signing in with an API key, its cookie, and forms that only we can send.

The cookie is random and known to the database by its digest alone, as a key is. It ends with the key, after
``VISIT_SECONDS``, or at signing out. A form carries a token that follows from its cookie, which no other site can read.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from fastapi.responses import Response
from sqlalchemy import delete, select

from ..auth import Principal, digest, principal_of
from ..context import context_of
from ..database.tables import Audit, Key
from ..database.visits import Visit
from ..errors import ApiError

COOKIE, FORM_COOKIE = "antibody_console", "antibody_console_form"
"""The cookie of who has signed in, and the one of the form to sign in."""
VISIT_SECONDS = 12 * 3600
FORM_BYTES, MAX_FIELDS = 64 * 1024, 20


class SignInFirst(Exception):
    """Nobody has signed in, or no longer.

    Args:
        why: What the form says; empty for a first visit.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Visitor:
    """Who looks, and the token of their forms."""

    principal: Principal
    form_token: str

    @property
    def is_operator(self) -> bool:
        """Whether they may see every project and decide on models."""
        return self.principal.is_operator


def form_token(cookie: str) -> str:
    """What a form must carry beside its cookie."""
    return sha256(f"form:{cookie}".encode()).hexdigest()


def visitor(request: Request) -> Visitor:
    """Whoever sent the request, counted against the rate of the key that they have signed in with.

    Raises:
        SignInFirst: nobody has, the visit is over, or the key is.
        ApiError: 429: too many requests of that key.
    """
    cookie = request.cookies.get(COOKIE, "")
    context = context_of(request)
    with context.database.read() as session:
        row = session.get(Visit, digest(cookie)) if cookie else None
        now = context.database.now(session)
    if row is None or row.expires_at <= now:
        raise SignInFirst("Your visit is over. Sign in again." if cookie else "")
    try:
        principal = principal_of(request, Key.id == row.key_id, "The API key of this visit")
    except ApiError as error:
        if error.status == 401:
            raise SignInFirst(error.message) from None
        raise
    found = Visitor(principal, form_token(cookie))
    request.state.visitor = found  # for a page that says what went wrong
    return found


def operator(request: Request) -> Visitor:
    """Whoever sent the request, who is an operator.

    Raises:
        ApiError: 403 for anybody else; the rest as ``visitor``.
    """
    found = visitor(request)
    if not found.is_operator:
        raise ApiError(403, "Only an operator's key may see this page.", code="operator_only")
    return found


async def form(request: Request) -> Mapping[str, str]:
    """The fields of a form that one of our own pages has sent.

    Raises:
        ApiError: 400: it is no form. 403: it comes from elsewhere, or its page is older than the visit. 413.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ApiError(400, "A form is needed. Use the pages of the console.", code="invalid_form")
    body = await request.body()
    if len(body) > FORM_BYTES:
        raise ApiError(413, f"The form is longer than {FORM_BYTES} bytes. Shorten it.", code="too_large")
    try:
        fields = dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise ApiError(400, "The form cannot be read. Send it again.", code="invalid_form") from None
    site = request.headers.get("sec-fetch-site", "same-origin")
    cookie = request.cookies.get(COOKIE) or request.cookies.get(FORM_COOKIE, "")
    if site not in ("same-origin", "none") or not secrets.compare_digest(
        fields.get("form_token", "").encode(), form_token(cookie).encode() if cookie else b"-"
    ):
        raise ApiError(403, "The form is too old, or not ours. Load its page again and repeat.", code="invalid_form")
    return fields


Someone = Annotated[Visitor, Depends(visitor)]
AnOperator = Annotated[Visitor, Depends(operator)]
Form = Annotated[Mapping[str, str], Depends(form)]


def sign_in(request: Request, secret: str) -> str:
    """Begin a visit with an API key, and return its cookie.

    Raises:
        ApiError: 401: the key is unknown, revoked or expired. 429.
    """
    if not secret:
        raise ApiError(401, "No API key. Type or paste yours.", code="missing_api_key")
    context = context_of(request)
    called = f"The API key that ends in {secret[-4:]!r}" if len(secret) > 20 else "This API key"
    principal = principal_of(request, Key.digest == digest(secret), called)
    cookie = secrets.token_urlsafe(32)
    with context.database.write() as session:
        now = context.database.now(session)
        session.execute(delete(Visit).where(Visit.expires_at <= now))
        made = Visit(digest=digest(cookie), key_id=principal.key_id, created_at=now, expires_at=now + VISIT_SECONDS)
        session.add(made)
        session.add(
            Audit(
                created_at=now,
                actor=principal.key_id,
                action="console.signed_in",
                subject=principal.key_id,
                project_id=principal.project_id,
            )
        )
    return cookie


def sign_out(request: Request) -> None:
    """End the visit: its cookie is worth nothing from now on."""
    with context_of(request).database.write() as session:
        row = session.scalars(select(Visit).where(Visit.digest == digest(request.cookies.get(COOKIE, "")))).first()
        if row is not None:
            session.delete(row)


def give_cookie(request: Request, response: Response, name: str, value: str) -> None:
    """Add a cookie that no script reads, that no other site sends, and that ends with the browser."""
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(name, value, path="/console", httponly=True, samesite="strict", secure=secure)


def take_cookies(response: Response) -> None:
    """Have the browser forget its cookies."""
    for name in (COOKIE, FORM_COOKIE):
        response.delete_cookie(name, path="/console", httponly=True, samesite="strict")
