"""Signing in and out."""

import re
import secrets
from typing import Any

from fastapi import APIRouter, Request, Response

from ..errors import ApiError
from .render import Page, page, see
from .visits import (
    COOKIE,
    FORM_COOKIE,
    Form,
    SignInFirst,
    Someone,
    form_token,
    give_cookie,
    sign_in,
    sign_out,
    take_cookies,
    visitor,
)

router = APIRouter(prefix="/console", route_class=Page)

HOME = "/console/jobs"
OWN_PATH = re.compile(r"/console(/[A-Za-z0-9_-]+)*")
"""Paths that signing in leads to: no other host can be named by one."""


@router.get("/sign-in")
def ask(request: Request, next: str = HOME, said: str = "") -> Response:
    """The form to sign in; whoever has signed in already goes on."""
    try:
        visitor(request)
    except SignInFirst:
        return _form(request, _own(next), "Your visit is over. Sign in again." if said == "over" else None)
    return see(_own(next))


@router.post("/sign-in")
def answer(request: Request, form: Form) -> Response:
    """Sign in with a key, which travels in the form's body alone."""
    target = _own(form.get("next", HOME))
    try:
        cookie = sign_in(request, form.get("key", "").strip())
    except ApiError as error:
        return _form(request, target, error.message, code=error.status)
    response = see(target)
    give_cookie(request, response, COOKIE, cookie)
    return response


@router.post("/sign-out")
def leave(request: Request, someone: Someone, form: Form) -> Response:
    """Sign out."""
    sign_out(request)
    response = see("/console/sign-in")
    take_cookies(response)
    return response


def _form(request: Request, target: str, message: str | None, *, code: int = 200) -> Response:
    """The form, whose own cookie makes sure that it is answered where it was asked for."""
    cookie = request.cookies.get(FORM_COOKIE) or secrets.token_urlsafe(32)
    values: dict[str, Any] = {"message": message, "next": target, "form_token": form_token(cookie)}
    response = page("sign_in", None, code=code, **values)
    if COOKIE in request.cookies:
        take_cookies(response)
    give_cookie(request, response, FORM_COOKIE, cookie)
    return response


def _own(path: str) -> str:
    return path if OWN_PATH.fullmatch(path) else HOME
