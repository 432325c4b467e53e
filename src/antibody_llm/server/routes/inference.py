"""``/chat/completions``, ``/completions`` and ``/responses``: who may ask which model, and who answers for it."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from ...text import quoted
from ..auth import Caller, Principal
from ..context import Context, context_of
from ..errors import ApiError, not_found
from ..inference.backends import Endpoint, LocalProcess, Question
from ..models import usable
from ..settings import OfferedModel
from ..weights import Weights, local_weights

MAX_DEPTH = 64
"""Levels of a body, as in the bodies of all other requests."""
PATHS = ("/chat/completions", "/completions", "/responses")


class Inference:
    """Answers for every offered model, and for what was fine-tuned from it.

    Args:
        local: The process that serves models which name no endpoint.
        cache: Folder for weights that are fetched from the blobs.
    """

    def __init__(self, local: LocalProcess, cache: Path) -> None:
        self.local, self.cache = local, cache
        self._endpoints: dict[tuple[str, str], Endpoint] = {}

    async def answer(self, context: Context, caller: Principal, path: str, body: dict[str, Any]) -> Response:
        """The answer to a request.

        Raises:
            ApiError: the model is not the caller's to ask, or cannot be asked now.
        """
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise ApiError(
                400, "Missing required parameter: 'model'.", code="missing_required_parameter", param="model"
            )
        offered, weights = await run_sync(self._weights, context, caller, name)
        return await self._backend(offered).answer(Question(path, name, weights, body))

    def _weights(self, context: Context, caller: Principal, name: str) -> tuple[OfferedModel, Weights]:
        with context.database.read() as session:
            found = usable(session, context, caller, name)
        path = found.offered.path or found.offered.name
        if found.row is None:
            return found.offered, Weights(path)
        weights = local_weights(found.row.name, path, context.queue, context.blobs, self.cache)
        if weights is None:
            raise not_found("model", name, param="model")
        return found.offered, weights

    def _backend(self, offered: OfferedModel) -> LocalProcess | Endpoint:
        if not offered.inference:
            return self.local
        where = offered.inference, offered.inference_key_env
        if where not in self._endpoints:
            # From the environment when it is needed: no setting, log line or worker ever holds the key.
            self._endpoints[where] = Endpoint(offered.inference, key=os.environ.get(offered.inference_key_env, ""))
        return self._endpoints[where]


def make_router(inference: Inference) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["inference"])
    for path in PATHS:
        router.add_api_route(
            path,
            _endpoint(inference, path),
            methods=["POST"],
            summary=f"Ask a model. The fields are those of the API's own {path}; what is not supported is refused.",
            openapi_extra=_BODY,
            response_class=Response,
        )
    return router


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model"],
                    "properties": {"model": {"type": "string"}, "stream": {"type": "boolean"}},
                }
            }
        },
    }
}


def _check_can_be_sent(body: dict[str, Any]) -> None:
    """Refuse what Python reads as JSON and no other parser does.

    Raises:
        ApiError: 400.
    """
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
    if level:
        raise ApiError(400, f"The body nests deeper than {MAX_DEPTH} levels. Flatten it.", code="invalid_json")
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "The body holds half a surrogate pair. Remove it.", code="invalid_json") from None
    except ValueError:
        why = "The body holds NaN, an infinity or a number beyond a float. Change it."
        raise ApiError(400, why, code="invalid_json") from None


def _inside(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _endpoint(inference: Inference, path: str) -> Any:
    async def ask(request: Request, caller: Caller) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not JSON. Send a JSON object.", code="invalid_json") from None
        if not isinstance(body, dict):
            raise ApiError(400, f"A JSON object is needed, this is {quoted(body)}.", code="invalid_value")
        _check_can_be_sent(body)
        return await inference.answer(context_of(request), caller, path, body)

    ask.__name__ = path.strip("/").replace("/", "_")
    return ask
