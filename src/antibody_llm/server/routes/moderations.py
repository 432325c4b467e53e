"""``/moderations``, from the operator's judge."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ..auth import Caller
from ..bodies import ModerationCreate
from ..context import context_of
from ..errors import ApiError
from ..ids import new_id

router = APIRouter(tags=["moderations"])

CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
)
OURS = "illicit"
"""The category under which harm is reported: the judge says whether a text is harmful, not how."""


class Moderated(BaseModel):
    """One result for each text."""

    id: str
    model: str
    results: list[dict[str, Any]]


@router.post("/moderations", response_model=Moderated)
def create(request: Request, caller: Caller, body: ModerationCreate) -> dict[str, object]:
    """Judge texts. Scores are 0 or 1: a judge's verdict has no degrees."""
    moderator = context_of(request).moderator
    if moderator is None:
        raise ApiError(
            400,
            "This server moderates nothing: its operator has named no judge that reads single texts "
            "(moderation_judge in antibody.yaml).",
            code="moderation_not_configured",
        )
    try:
        texts = body.texts()
    except ValueError as error:
        raise ApiError(400, f"input: {error}.", code="invalid_value", param="input") from None
    results = [_result(flagged) for flagged in moderator.flagged(texts)]
    return {"id": new_id("modr-"), "model": moderator.name, "results": results}


def _result(flagged: bool) -> dict[str, object]:
    return {
        "flagged": flagged,
        "categories": {name: flagged and name == OURS for name in CATEGORIES},
        "category_scores": {name: float(flagged and name == OURS) for name in CATEGORIES},
        "category_applied_input_types": {name: ["text"] if name == OURS else [] for name in CATEGORIES},
    }
