"""The console's routes, all below ``/console`` and none in the published description of the API."""

from importlib.resources import files as package_files

from fastapi import APIRouter, Request, Response

from ..errors import not_found
from . import files, jobs, operating, signing
from .render import Page, see
from .visits import Someone

STATIC = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}

router = APIRouter(route_class=Page, include_in_schema=False)
for part in (signing, jobs, files, operating):
    router.include_router(part.router)


@router.get("/console")
@router.get("/console/")
def home() -> Response:
    """The first page."""
    return see(signing.HOME)


@router.get("/console/static/{name}")
def static(name: str) -> Response:
    """A file that the pages need; it holds nothing of anybody's."""
    if name not in STATIC:
        raise not_found("file", name)
    content = (package_files(__package__) / "static" / name).read_bytes()
    return Response(content, media_type=STATIC[name], headers={"cache-control": "max-age=300"})


@router.get("/console/{path:path}")
def nothing(request: Request, someone: Someone, path: str) -> Response:
    """No such page."""
    raise not_found("page", request.url.path)
