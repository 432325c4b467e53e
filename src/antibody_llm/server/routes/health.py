"""Health, readiness and metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..auth import Operator
from ..context import context_of

router = APIRouter(tags=["health"])


@router.get("/health")
def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "not ready"}})
def ready(request: Request) -> JSONResponse:
    """The database is reachable and the process is not about to end."""
    context = context_of(request)
    fine = not context.stopping and context.database.reachable()
    return JSONResponse({"status": "ready" if fine else "not ready"}, 200 if fine else 503)


@router.get("/metrics", response_class=Response)
def metrics(request: Request, operator: Operator) -> Response:
    """Prometheus metrics, for an operator's key."""
    context = context_of(request)
    return Response(context.metrics.text(context.queue), media_type="text/plain; version=0.0.4")
