"""``/fine_tuning/alpha/graders``."""

import time
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from ..auth import Caller
from ..graders import GraderRun, GraderValidate, run

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["graders"])

NO_ERRORS = (
    *("formula_parse_error", "invalid_variable_error", "model_grader_parse_error", "model_grader_refusal_error"),
    *("model_grader_server_error", "other_error", "python_grader_runtime_error", "python_grader_server_error"),
    *("sample_parse_error", "truncated_observation_error", "unresponsive_reward_error"),
)
"""Kinds of failure that the answer lists; none can happen to a comparison of texts."""


class Validated(BaseModel):
    """A grader of the right form."""

    grader: dict[str, Any]


class Graded(BaseModel):
    """What a grader said."""

    reward: float
    sub_rewards: dict[str, Any]
    metadata: dict[str, Any]
    model_grader_token_usage_per_model: dict[str, Any]


@router.post("/validate", response_model=Validated)
def validate(caller: Caller, body: GraderValidate) -> dict[str, object]:
    """Check a grader's form."""
    return {"grader": body.grader.model_dump(exclude_none=True)}


@router.post("/run", response_model=Graded)
def run_grader(caller: Caller, body: GraderRun) -> dict[str, object]:
    """Run a grader on one answer."""
    begun = time.perf_counter()
    reward = run(body)
    errors = dict.fromkeys(NO_ERRORS, False) | {
        "python_grader_runtime_error_details": None,
        "python_grader_server_error_type": None,
        "model_grader_server_error_details": None,
    }
    metadata = {
        "name": body.grader.name,
        "type": body.grader.type,
        "errors": errors,
        "execution_time": time.perf_counter() - begun,
        "scores": {},
        "token_usage": None,
        "sampled_model_name": None,
    }
    return {"reward": reward, "sub_rewards": {}, "metadata": metadata, "model_grader_token_usage_per_model": {}}
