"""Calls to an OpenAI-compatible endpoint: a bounded number at a time, repeated where it helps.

A call is repeated after a failed connection, a time-out, and the statuses 408, 409, 425, 429 and 5xx: after as long as
``retry-after`` asks for, else after 0.5, 1, 2, ... seconds. Any other status is an answer that repeating would not
change. The key comes from an environment variable, goes into one header, and into nothing that is written or printed.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from ..errors import ConfigError, EvaluationError
from ..text import cut, quoted

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds before the second attempt, and the most before any."""
REPEATED = {408, 409, 425, 429}
_SECRETS = ("key", "token", "secret", "password", "sig", "signature", "code", "auth")


class EndpointFailed(EvaluationError):
    """The endpoint cannot be used: it does not answer, or refuses every call."""


class CallRefused(EvaluationError):
    """The endpoint refused this one call (status 400, 413 or 422); another may pass."""


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        url: Its base, such as ``http://localhost:8000/v1``.
        key_variable: The environment variable that holds its key; without one, none is sent.
        field: The setting that names the endpoint, for errors.
        timeout: Seconds that one answer may take.
        concurrency: The most calls at a time.
        attempts: The most attempts of one call.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str,
        field: str,
        timeout: float = 120.0,
        concurrency: int = 8,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.url, self._variable, self._field = _checked_url(url, key_variable, field), key_variable, field
        self._timeout, self._concurrency, self._attempts = timeout, concurrency, attempts
        self._given_up = threading.Event()
        _key(key_variable, field)

    def post_each(
        self, path: str, bodies: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any] | CallRefused]]:
        """The answer to each body with its number, as they come; or that the endpoint refused this one.

        The first is asked alone, so that an endpoint that refuses everything is asked once.

        Raises:
            EndpointFailed: the endpoint cannot be used. Calls that were under way are waited for, and yielded before.
        """
        if not bodies:
            return
        self._given_up.clear()
        with self._client() as client:
            yield 0, self._post(client, path, bodies[0])
            calls = [(number, body) for number, body in enumerate(bodies)][1:]
            yield from self._bounded(lambda body: self._post_or_refusal(client, path, body), calls)

    def _bounded(self, call: Callable[[T], R], items: Sequence[tuple[int, T]]) -> Iterator[tuple[int, R]]:
        waiting, failed = iter(items), None
        running: dict[Future[R], int] = {}
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                while True:
                    while failed is None and len(running) < self._concurrency and (item := next(waiting, None)):
                        running[pool.submit(call, item[1])] = item[0]
                    if not running:
                        break
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        number = running.pop(done)
                        if error := done.exception():
                            failed = failed or error
                            self._given_up.set()  # the others need not wait for their next attempt
                        else:
                            yield number, done.result()
            finally:
                self._given_up.set()
                pool.shutdown(cancel_futures=True)
        if failed is not None:
            raise failed

    def _post_or_refusal(self, client: "httpx2.Client", path: str, body: Mapping[str, Any]) -> Any:
        try:
            return self._post(client, path, body)
        except CallRefused as refusal:
            return refusal

    def _post(self, client: "httpx2.Client", path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        import httpx2

        problem = ""
        for attempt in range(1, self._attempts + 1):
            pause = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * (0.75 + random.random() / 2)
            try:
                answer = client.post(path, json=body)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.is_success:
                    return self._json(answer)
                problem = f"status {answer.status_code}: {self._said(answer)}"
                if answer.status_code not in REPEATED and answer.status_code < 500:
                    raise self._refused(answer.status_code, problem)
                pause = _asked_pause(answer.headers.get("retry-after")) or pause
            if attempt < self._attempts and self._given_up.wait(pause):
                break
        raise EndpointFailed(
            f"{self.url}: no usable answer after {attempt} attempts ({self._clean(problem)}). Check that the endpoint "
            "runs and is reached from here.",
            field=self._field,
        )

    def _json(self, answer: "httpx2.Response") -> Mapping[str, Any]:
        """The object of an answer; an empty one where it holds none, which no reader takes for a verdict or a text."""
        try:
            value = answer.json()
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def _refused(self, status: int, problem: str) -> EvaluationError:
        said = f"{self.url}: {self._clean(problem)}."
        if status in (400, 413, 422):
            return CallRefused(said, field=self._field)
        if status in (401, 403):
            said += f" Set the environment variable {self._variable} to a key that may call it."
        else:
            said += " Check the URL, up to and including /v1, and the model's name."
        return EndpointFailed(said, field=self._field)

    def _said(self, answer: "httpx2.Response") -> str:
        error = self._json(answer).get("error")
        message = error.get("message") if isinstance(error, dict) else error
        return str(message or answer.text or answer.reason_phrase)

    def _clean(self, text: str) -> str:
        """A stranger's text for a message: short, and without our key, which some endpoints repeat."""
        key = _key(self._variable, self._field)
        return cut(text.replace(key, "(the key)") if key else text, 300).rstrip(".")

    def _client(self) -> "httpx2.Client":
        try:
            import httpx2
        except ImportError as error:
            raise ConfigError(
                "an endpoint is called with httpx2, which is missing. Install antibody-llm[server].", field=self._field
            ) from error
        key = _key(self._variable, self._field)
        parts = urlsplit(self.url)
        return httpx2.Client(
            base_url=self.url.partition("?")[0].rstrip("/") + "/",
            params=parts.query,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(self._timeout, connect=min(10.0, self._timeout)),
            limits=httpx2.Limits(max_connections=self._concurrency),
        )


def _checked_url(url: str, key_variable: str, field: str) -> str:
    try:
        parts = urlsplit(url)
        named, port = parts.hostname, parts.port  # noqa: F841  # reading a wrong port raises
    except ValueError as error:
        raise ConfigError(f"{quoted(url)}: no URL ({error}). Give http://HOST:PORT/v1.", field=field) from error
    if parts.scheme not in ("http", "https") or not named:
        raise ConfigError(f"{quoted(url)}: no URL of an endpoint. Give http://HOST:PORT/v1.", field=field)
    if parts.username is not None or parts.password is not None or any(map(_is_secret, parse_qsl(parts.query))):
        raise ConfigError(
            f"the URL of {named} holds a key or a password, and URLs are stored with a run. Put it into the "
            f"environment variable {key_variable} instead.",
            field=field,
        )
    return url


def _is_secret(parameter: tuple[str, str]) -> bool:
    return any(word in _SECRETS for word in parameter[0].casefold().replace("_", "-").split("-"))


def _key(variable: str, field: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the environment variable {variable} holds characters that no key has. Set it again.", field=field
        )
    return key


def _asked_pause(header: str | None) -> float | None:
    """Seconds until the time that ``retry-after`` gives, in seconds or as a date; at most ``LONGEST_WAIT``."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            at = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(LONGEST_WAIT, max(0.0, seconds)) if seconds == seconds else None


def chat_text(answer: Mapping[str, Any]) -> str | None:
    """The text of a chat completion; None where the answer holds none."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else None
