"""What every route needs, made once by ``create_app``."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastapi import Request

from .blobs import Blobs
from .database.engine import Database
from .queue import Queue
from .settings import ServerSettings

if TYPE_CHECKING:
    from .auth import Rates
    from .defences import Defences
    from .metrics import Metrics
    from .traces import Traces


class Moderator(Protocol):
    """Decides whether texts are harmful, for ``/moderations``."""

    @property
    def name(self) -> str:
        """What the answer calls the model."""

    def flagged(self, texts: Sequence[str]) -> Sequence[bool]:
        """Whether each text is harmful."""


@dataclass
class Context:
    """The server's parts."""

    settings: ServerSettings
    database: Database
    blobs: Blobs
    queue: Queue
    rates: "Rates"
    defences: "Defences"
    metrics: "Metrics"
    moderator: Moderator | None = None
    traces: "Traces | None" = None
    """Where spans go; None: nowhere."""
    post: Callable[..., Awaitable[int]] | None = None
    """How a webhook is sent: URL, body and headers to the endpoint's status; None: over the network."""
    swept_at: float = 0.0
    """When blobs that no row names were removed."""
    stopping: bool = False
    """Whether the process is about to end, so that it is no longer ready."""


def context_of(request: Request) -> Context:
    """The parts of the server that answers a request."""
    context: Context = request.app.state.context
    return context
