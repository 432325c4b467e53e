"""Who answers for a model: the inference process of this server, or an endpoint that speaks the same API.

Both take the client's body and give an answer back as it came, a stream piece by piece.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from ...models.deployment import Deployment
from ..errors import ApiError
from ..weights import Weights

log = logging.getLogger("antibody.server")

ANSWER_SECONDS = 600.0
"""Longest wait for an answer, as long as the API's own client waits."""


@dataclass(frozen=True)
class Question:
    """A request to a model."""

    path: str
    """``/chat/completions``, ``/completions`` or ``/responses``."""
    name: str
    """The model as the client names it."""
    weights: Weights
    body: Mapping[str, Any]


class LocalProcess:
    """The inference process (app.py) behind a socket.

    Args:
        transport: What leads to it; ``httpx2.AsyncHTTPTransport(uds=...)``.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._client = httpx2.AsyncClient(
            transport=transport, base_url="http://inference", timeout=httpx2.Timeout(ANSWER_SECONDS, connect=5.0)
        )

    async def answer(self, question: Question) -> Response:
        """The model's answer, or the error that it gave.

        Raises:
            ApiError: the process is not there.
        """
        target = {"model": question.weights.model, "adapter": question.weights.adapter}
        wrapped = {"name": question.name, "target": target, "body": question.body}
        return await _passed_on(self._client, question.path, wrapped)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


class Endpoint:
    """An OpenAI-compatible endpoint that serves the base model, such as vLLM; adapters are loaded there when asked for.

    vLLM reads an adapter from a folder, which must be the same on both machines, and needs
    ``VLLM_ALLOW_RUNTIME_LORA_UPDATING``.

    Args:
        url: Up to and with ``/v1``.
        key: Its API key, if it wants one.
        transport: Replaces the network in tests.
    """

    def __init__(self, url: str, *, key: str = "", transport: httpx2.AsyncBaseTransport | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=5.0),
            transport=transport,
        )
        self._loaded: set[str] = set()

    async def answer(self, question: Question) -> Response:
        """The endpoint's answer.

        Raises:
            ApiError: it cannot be reached, does not load the adapter, or cannot prompt it as its defence wants.
        """
        name, adapter = question.weights.model, question.weights.adapter
        if adapter is None:
            return await self._asked(question.path, {**question.body, "model": name})
        name = Path(adapter).name
        body = {**deployed(question), "model": name}
        known = name in self._loaded
        await self._load(name, adapter)
        if known:
            answer = await _passed_on(self._client, question.path, body)
            if answer.status_code != 404:
                return self._for_customers(answer)
            self._loaded.discard(name)  # it was started again, and has forgotten
            await self._load(name, adapter)
        return await self._asked(question.path, body)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    async def _asked(self, path: str, body: Mapping[str, Any]) -> Response:
        return self._for_customers(await _passed_on(self._client, path, body))

    def _for_customers(self, answer: Response) -> Response:
        """The answer, unless it is about the operator's key, or a model's name there, which customers do not know.

        Raises:
            ApiError: 502: it is.
        """
        if answer.status_code not in (401, 403, 404):
            return answer
        log.error("the endpoint %s refuses (%s): %s", self._client.base_url, answer.status_code, _REFUSED)
        raise ApiError(502, "The model is not served where it should be. Ask the operator.", code="not_served")

    async def _load(self, name: str, folder: str) -> None:
        if name in self._loaded:
            return
        try:
            answer = await self._client.post("/load_lora_adapter", json={"lora_name": name, "lora_path": folder})
        except httpx2.TransportError as error:
            raise _away(error) from None
        if answer.status_code != 200 and "already" not in answer.text:
            log.error(
                "the endpoint does not load the adapter %s (%s): %s", folder, answer.status_code, answer.text[:500]
            )
            raise ApiError(502, "The model cannot be loaded where it is served. Ask the operator.", code="not_loaded")
        self._loaded.add(name)


_REFUSED = "check inference_key_env, and that it serves the model by the name in path"


def deployed(question: Question) -> Mapping[str, Any]:
    """The client's body with what the adapter's defence wants said before every request.

    Raises:
        ApiError: 400: that cannot be said here.
    """
    note = Path(str(question.weights.adapter)) / "antibody.json"
    entries = json.loads(note.read_text(encoding="utf-8")).get("deployment", {}) if note.is_file() else {}
    deployment = Deployment(**entries)
    if deployment == Deployment():
        return question.body
    messages = question.body.get("messages")
    if question.path != "/chat/completions" or deployment.completion_prefix or not isinstance(messages, list):
        raise ApiError(
            400,
            "The model was trained under a defence that words every request, and the endpoint that serves it takes "
            "this only as the system message of a chat. Use /chat/completions, or ask the operator.",
            code="unsupported_deployment",
        )
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    system = _text(first.get("content")) if first.get("role") in ("system", "developer") else None
    rest = messages if system is None else messages[1:]
    text = " ".join(part for part in (deployment.system_prefix, system or deployment.default_system) if part)
    return {**question.body, "messages": [{"role": "system", "content": text}, *rest]}


def _text(content: Any) -> str | None:
    """A message's text, also where it comes in parts.

    Raises:
        ApiError: 400: it is none.
    """
    if content is None or isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [None]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise ApiError(400, "messages[0].content: a system message is text.", code="invalid_value", param="messages")
    return "\n".join(part["text"] for part in parts)


async def _passed_on(client: httpx2.AsyncClient, path: str, body: Mapping[str, Any]) -> Response:
    started = time.monotonic()
    try:
        answer = await client.send(client.build_request("POST", path, json=body), stream=True)
        kind = answer.headers.get("content-type", "application/json")
        if not kind.startswith("text/event-stream"):
            await answer.aread()
            await answer.aclose()
            return Response(answer.content, answer.status_code, media_type=kind)
    except httpx2.TimeoutException:
        waited = f"The model has not answered for {time.monotonic() - started:.0f} s. Ask for fewer tokens."
        raise ApiError(504, waited, code="inference_timeout") from None
    except httpx2.TransportError as error:
        raise _away(error) from None
    return StreamingResponse(
        _pieces(answer), answer.status_code, media_type=kind, background=BackgroundTask(answer.aclose)
    )


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx2.TransportError:
        yield b'data: {"error": {"message": "The model broke off. Try again.", "type": "server_error", '
        yield b'"param": null, "code": "inference_unavailable"}}\n\n'
    finally:
        await answer.aclose()  # the model need not go on where the client is gone


def _away(error: Exception) -> ApiError:
    log.error("inference cannot be reached: %s", type(error).__name__)
    return ApiError(
        503,
        "The model is not being served at the moment. Try again in a few seconds.",
        code="inference_unavailable",
        headers={"retry-after": "2"},
    )
