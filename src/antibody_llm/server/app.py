"""The API as an ASGI application."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI

from .. import __version__
from .auth import Rates
from .blobs import Blobs
from .console.router import router as console
from .context import Context, Moderator
from .database.engine import Database
from .defences import Defences, load_defences
from .errors import handle_errors
from .housekeeping import deliveries, housekeep
from .metrics import Metrics
from .openapi import Api, publish
from .queue import Queue
from .requests import Requests
from .routes import files, graders, health, jobs, models, moderations, operator, safety, uploads, webhooks
from .settings import ServerSettings
from .traces import make_traces

ROUTERS = tuple(
    module.router for module in (files, uploads, jobs, graders, models, moderations, webhooks, safety, operator)
)


def make_context(
    settings: ServerSettings,
    *,
    defences: Defences | None = None,
    moderator: Moderator | None = None,
    clock: Callable[[], float] | None = None,
    post: Callable[..., Awaitable[int]] | None = None,
) -> Context:
    """The parts of a server, its database brought to this version.

    Args:
        settings: What the operator set.
        defences: The catalogue; None: listed by a process that imports it, once.
        moderator: Behind ``/moderations``; None: it answers that there is none.
        clock: Seconds since 1970, for tests.
        post: How a webhook is sent, for tests.
    """
    database = Database(settings.database_url, clock=clock)
    database.migrate()
    blobs = Blobs(settings.blob_url)
    queue = Queue(database, blobs, lease=settings.worker.lease, max_attempts=settings.worker.attempts)
    return Context(
        settings=settings,
        database=database,
        blobs=blobs,
        queue=queue,
        rates=Rates(),
        defences=defences or load_defences(settings.home),
        metrics=Metrics(),
        moderator=moderator,
        traces=make_traces(settings.telemetry),
        post=post,
    )


def create_app(context: Context, *, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application.

    Args:
        context: From ``make_context``.
        routers: More routes below ``/v1``, such as those of inference.
    """
    app = Api(
        title="Antibody",
        version=__version__,
        summary="The OpenAI fine-tuning API on your own models, screened before, defended during, gated after.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.context = context
    handle_errors(app)
    for router in (*ROUTERS, *routers):
        app.include_router(router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(console)
    publish(app)
    app.add_middleware(Requests, context=context)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Housekeeping beside the requests, until the process ends."""
    context: Context = app.state.context
    async with anyio.create_task_group() as tasks:
        if context.settings.housekeeping_seconds:
            # Apart: an endpoint that takes its time must not keep leases waiting.
            for work in (housekeep, deliveries):
                tasks.start_soon(_again_and_again, context, work)
        try:
            yield
        finally:
            context.stopping = True
            tasks.cancel_scope.cancel()


async def _again_and_again(context: Context, work: Callable[[Context], None]) -> None:
    while not context.stopping:
        with suppress(Exception):  # logged there; the next round tries again
            await run_sync(work, context, abandon_on_cancel=False)
        await anyio.sleep(context.settings.housekeeping_seconds)
