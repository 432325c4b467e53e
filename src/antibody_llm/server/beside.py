"""Processes beside the API's: workers, and the one that answers for models. The API's own never imports torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fastapi import APIRouter

from .context import Context


@contextmanager
def processes(context: Context) -> Iterator[Sequence[APIRouter]]:
    """Start them, and end them with the block.

    Yields:
        Routes below ``/v1`` that pass requests on to them.
    """
    yield ()
