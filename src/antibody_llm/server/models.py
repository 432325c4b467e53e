"""Which models a caller may use: the offered ones, and the released fine-tuned ones of its project."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from .auth import Principal
from .clean import storable
from .context import Context
from .database.tables import Model, Permission
from .errors import ApiError, not_found
from .settings import OfferedModel


@dataclass(frozen=True)
class Usable:
    """A model that a caller may ask."""

    offered: OfferedModel
    """The base model at the beginning of its chain."""
    row: Model | None
    """The fine-tuned model, with the prefix of its adapter's blobs; None: the base itself."""


def usable(session: Session, context: Context, caller: Principal, name: str, *, param: str = "model") -> Usable:
    """The model of that name, for inference or as the start of a job.

    Raises:
        ApiError: 404: there is none, it is another's, not released, or deleted.
    """
    offered = context.settings.model(name)
    if offered is not None:
        return Usable(offered, None)
    possible = len(name) <= 512 and storable(name)
    row = session.scalars(visible(caller).where(Model.name == name)).first() if possible else None
    base = None if row is None else context.settings.model(row.base)
    if row is None or base is None:
        raise not_found("model", name, param=param)
    return Usable(base, row)


def resolve(session: Session, context: Context, caller: Principal, name: str, *, param: str) -> tuple[str, str | None]:
    """The offered base model of a job, and the fine-tuned model that it continues.

    Raises:
        ApiError: 400, as for any wrong value in a body: no such model; names the ones that are offered.
    """
    try:
        found = usable(session, context, caller, name, param=param)
    except ApiError:
        offered = ", ".join(model.name for model in context.settings.models) or "none"
        raise ApiError(
            400,
            f"The model {name[:100]!r} cannot be fine-tuned here: there is none, or it is not released. Models: "
            f"{offered}, and your own ft: models.",
            code="model_not_found",
            param=param,
        ) from None
    return found.offered.name, None if found.row is None else found.row.name


def visible(caller: Principal) -> Any:
    """Rows of released models that the caller's project owns or may use."""
    permitted = select(Permission.model).where(Permission.project_id == caller.project_id)
    mine = or_(Model.project_id == caller.project_id, Model.name.in_(permitted))
    return select(Model).where(mine, Model.released, Model.deleted_at.is_(None))


def own_model(session: Session, caller: Principal, name: str) -> Model:
    """A fine-tuned model of the caller's own project, released or not.

    Raises:
        ApiError: 404.
    """
    query = select(Model).where(Model.name == name, Model.project_id == caller.project_id, Model.deleted_at.is_(None))
    row = session.scalars(query).first()
    if row is None:
        raise not_found("model", name)
    return row
