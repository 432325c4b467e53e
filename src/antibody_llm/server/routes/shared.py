"""Parameters that several routes have."""

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=1000)]
"""Items of a page."""
