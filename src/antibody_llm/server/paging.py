"""Lists as the client pages through them: ``after`` names the last item that it has."""

from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Session

from ..text import quoted
from .errors import ApiError


def page(
    session: Session,
    query: Select[Any],
    table: Any,
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
    order: Any = None,
) -> tuple[list[Any], bool]:
    """Rows of a query behind ``after``, and whether there are more.

    Args:
        session: A session on the database.
        query: Rows of ``table``, filtered to what the caller may see.
        table: A table with ``seq`` and ``id``.
        after: Id of a row that the query would give.
        limit: Rows at most.
        newest_first: The order.
        order: A column that is the same as ``table.seq`` and has an index that suits the query; None: that one.

    Raises:
        ApiError: 400: ``after`` is none of the rows that the caller may see.
    """
    order = table.seq if order is None else order
    if after is not None:
        seq = session.scalar(query.with_only_columns(table.seq).where(table.id == after))
        if seq is None:
            raise ApiError(
                400, f"after is {quoted(after)}, which is no item of this list.", code="invalid_cursor", param="after"
            )
        query = query.where(order < seq if newest_first else order > seq)
    ordered = query.order_by(order.desc() if newest_first else order.asc()).limit(limit + 1)
    rows = list(session.scalars(ordered))
    return rows[:limit], len(rows) > limit


def listed(items: list[Any], *, has_more: bool) -> dict[str, Any]:
    """The list's object."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }
