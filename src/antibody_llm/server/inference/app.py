"""The inference process: a small application on a socket that only the API's process reaches.

    POST /chat/completions, /completions, /responses
        {"name": what the client calls the model, "target": {"model": ..., "adapter": ...}, "body": the client's}
    GET /health

It trusts whoever reaches the socket: keys, tenants and the gate are the API's business. A stream begins when the first
piece is there, so that what cannot be answered has its proper status.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...errors import AntibodyError
from .answers import AnyAnswer, ChatAnswer, ResponseAnswer, TextAnswer, failed
from .engine import Answer, Engine, Overloaded, Target
from .requests import Generation, RequestError, parse_chat, parse_completion, parse_response

log = logging.getLogger("antibody")

_KINDS: Mapping[str, tuple[Callable[[Mapping[str, Any]], Generation], Callable[[str, Generation], AnyAnswer]]] = {
    "/chat/completions": (parse_chat, ChatAnswer),
    "/completions": (parse_completion, TextAnswer),
    "/responses": (parse_response, ResponseAnswer),
}


def make_app(engine: Engine) -> Starlette:
    """The application around an engine, which it closes when it ends."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [Route(path, _endpoint(engine, path), methods=["POST"]) for path in _KINDS]
    return Starlette(routes=[*routes, Route("/health", health)], lifespan=lifespan)


def _endpoint(engine: Engine, path: str) -> Callable[[Request], Awaitable[Response]]:
    parse, shape = _KINDS[path]

    async def endpoint(request: Request) -> Response:
        given = json.loads(await request.body())
        try:
            asked = parse(given["body"])
        except RequestError as error:
            return JSONResponse(error.to_json(), 400)
        answer = shape(given["name"], asked)
        talk = _Conversation(engine, Target(**given["target"]), asked)
        first = await talk.next()
        if isinstance(first, Exception):
            content, status = described(first)
            return JSONResponse(content, status)
        if asked.stream:
            return StreamingResponse(_events(talk, answer, first), media_type="text/event-stream")
        assert isinstance(first, Answer)  # pieces come only where they are asked for
        return JSONResponse(answer.whole(first))

    return endpoint


def described(error: BaseException) -> tuple[dict[str, Any], int]:
    """The API's error object and status for what went wrong."""
    if isinstance(error, RequestError):
        return error.to_json(), 400
    if isinstance(error, Overloaded):
        message = "Too many requests wait for a model. Try again in a few seconds."
        return {"error": {"message": message, "type": "server_error", "param": None, "code": "overloaded"}}, 503
    # What is wrong with a model's folder names paths of the server, which are the operator's business; what else
    # failed may repeat a prompt, which is nobody's but the client's.
    log.error("the model could not answer: %s", error if isinstance(error, AntibodyError) else type(error).__name__)
    message = "The model could not answer. Try again; if it stays so, ask the operator, whose log says why."
    return {"error": {"message": message, "type": "server_error", "param": None, "code": "inference_failed"}}, 500


class _Conversation:
    """A request at the engine, whose pieces arrive in this loop."""

    def __init__(self, engine: Engine, target: Target, request: Generation) -> None:
        self.loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[tuple[int, str] | Answer | Exception] = asyncio.Queue()
        self.waits = True
        future = engine.submit(target, request, self._listen)
        future.add_done_callback(lambda done: self._put(done.exception() or done.result()))

    async def next(self) -> tuple[int, str] | Answer | Exception:
        """The next piece, or the whole answer, or what went wrong."""
        return await self.pieces.get()

    def _listen(self, index: int, piece: str) -> bool:
        self._put((index, piece))
        return self.waits

    def _put(self, item: Any) -> None:
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, item)


async def _events(talk: _Conversation, answer: AnyAnswer, first: tuple[int, str] | Answer) -> AsyncIterator[str]:
    item: tuple[int, str] | Answer | Exception = first
    try:
        for event in answer.first():
            yield event
        while isinstance(item, tuple):
            for event in answer.piece(*item):
                yield event
            item = await talk.next()
        if isinstance(item, Exception):
            yield failed(described(item)[0])
            return
        for event in answer.last(item):
            yield event
    finally:
        talk.waits = False  # the client may be gone
