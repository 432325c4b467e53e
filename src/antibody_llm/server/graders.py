"""Graders: their form is checked, and the one that needs neither a model nor a sandbox is run."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from .bodies import Body
from .errors import ApiError

Name = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=100_000)]


class StringCheck(Body):
    """Compares two texts."""

    type: Literal["string_check"]
    name: Name
    input: Text
    reference: Text
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(Body):
    """Measures how alike two texts are."""

    type: Literal["text_similarity"]
    name: Name
    input: Text
    reference: Text
    evaluation_metric: Literal[
        "cosine", "fuzzy_match", "bleu", "gleu", "meteor",
        "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
    ]  # fmt: skip


class PythonGrader(Body):
    """Runs a program."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(max_length=256 * 1024)]
    image_tag: str | None = None


class ScoreModel(Body):
    """Asks a model for a number."""

    type: Literal["score_model"]
    name: Name
    model: Name
    input: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sampling_params: dict[str, Any] | None = None


class LabelModel(Body):
    """Asks a model for a label."""

    type: Literal["label_model"]
    name: Name
    model: Name
    input: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    labels: Annotated[list[str], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[str], Field(min_length=1, max_length=100)]


Single = Annotated[StringCheck | TextSimilarity | PythonGrader | ScoreModel | LabelModel, Field(discriminator="type")]


class Multi(Body):
    """Combines graders by a formula."""

    type: Literal["multi"]
    name: Name
    graders: dict[str, Single] | Single
    calculate_output: Annotated[str, Field(min_length=1, max_length=10_000)]


Grader = Annotated[
    StringCheck | TextSimilarity | PythonGrader | ScoreModel | LabelModel | Multi, Field(discriminator="type")
]


class GraderValidate(Body):
    """A grader to check."""

    grader: Grader


class GraderRun(Body):
    """A grader to run on one answer."""

    grader: Grader
    model_sample: Annotated[str, Field(max_length=1_000_000)]
    item: dict[str, Any] | None = None


PLACE = re.compile(r"\{\{\s*([A-Za-z_][\w.]*)\s*\}\}")


def run(body: GraderRun) -> float:
    """The reward of a text comparison, 0 or 1.

    Raises:
        ApiError: 400: another kind of grader, or a place in its texts that neither sample nor item fills.
    """
    grader = body.grader
    if not isinstance(grader, StringCheck):
        raise ApiError(
            400,
            f"A grader of type '{grader.type}' is not run here: this server runs 'string_check', and trains with "
            "neither. 'validate' checks its form.",
            code="unsupported_grader",
            param="grader.type",
        )
    values = {"sample": {"output_text": body.model_sample}, "item": body.item or {}}
    given = _filled(grader.input, values, "grader.input")
    reference = _filled(grader.reference, values, "grader.reference")
    compare = {
        "eq": given == reference,
        "ne": given != reference,
        "like": reference in given,
        "ilike": reference.casefold() in given.casefold(),
    }
    return float(compare[grader.operation])


def _filled(text: str, values: Mapping[str, Any], param: str) -> str:
    def fill(place: re.Match[str]) -> str:
        here: Any = values
        for name in place[1].split("."):
            if not isinstance(here, Mapping) or name not in here:
                message = f"{param}: nothing is called {place[1][:100]!r}. There are sample.output_text and item.*."
                raise ApiError(400, message, code="invalid_value", param=param)
            here = here[name]
        return here if isinstance(here, str) else str(here)

    return PLACE.sub(fill, text)
