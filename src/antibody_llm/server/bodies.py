"""Bodies of requests. An unknown key is refused with the nearest name, everywhere."""

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from ..text import escaped, quoted
from .clean import storable

MAX_SEED = 2**31 - 1
WEBHOOK_EVENTS = (
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "safety.alert.created",
)
"""Events that this server sends."""


class Body(BaseModel):
    """A JSON object whose keys are known and whose texts a database can keep."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    known = list(cls.model_fields)
                    raise PydanticCustomError(
                        "unknown_parameter", "unknown parameter", {"name": escaped(str(key))[:100], "known": known}
                    )
            _check_texts(value)
        return value


def _check_texts(value: Any, depth: int = 0) -> None:
    if depth > 64:
        raise PydanticCustomError("too_deep", "the body nests too deeply")
    if isinstance(value, str):
        if not storable(value):
            raise PydanticCustomError("text", "text holds a NUL character or half a surrogate pair")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(name, depth + 1)
            _check_texts(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, depth + 1)


def _auto(kind: type, *, low: float, high: float = math.inf, open_below: bool = False) -> tuple[Any, Any]:
    """``auto``, or a number between two bounds."""

    def check(value: Any) -> Any:
        if value == "auto" or value is None:
            return "auto"
        fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not fits or not low <= value <= high or (open_below and value == low):
            sign = "more than" if open_below else "from"
            bounds = f"{sign} {low:g}" + ("" if high == math.inf else f" to {high:g}")
            raise ValueError(f"it must be 'auto' or {'a whole' if kind is int else 'a'} number {bounds}")
        return value

    number: dict[str, Any] = {"type": "integer" if kind is int else "number"}
    number["exclusiveMinimum" if open_below else "minimum"] = low
    number["maximum"] = high if high != math.inf else 1e308
    schema = {"anyOf": [{"type": "string", "const": "auto"}, number, {"type": "null"}], "default": "auto"}
    return PlainValidator(check), WithJsonSchema(schema)


class Hyperparameters(Body):
    """Settings of a supervised job. ``learning_rate`` and ``regime`` are ours; multiplier 1 is the default rate."""

    batch_size: Annotated[Any, *_auto(int, low=1, high=256)] = "auto"
    learning_rate_multiplier: Annotated[Any, *_auto(float, low=0, open_below=True)] = "auto"
    n_epochs: Annotated[Any, *_auto(int, low=1, high=50)] = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    regime: Literal["lora", "full"] | None = None

    def asked(self) -> dict[str, Any]:
        """What the job's object shows until it is resolved; our own names only where they were given."""
        values = self.model_dump()
        return {name: value for name, value in values.items() if value is not None}


class DpoHyperparameters(Hyperparameters):
    """Settings of a preference job."""

    beta: Annotated[Any, *_auto(float, low=0, high=2, open_below=True)] = "auto"


class Supervised(Body):
    """Method ``supervised``."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Body):
    """Method ``dpo``."""

    hyperparameters: DpoHyperparameters | None = None


class Method(Body):
    """How to train."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: dict[str, Any] | None = None


class Wandb(Body):
    """A service to report to. It is accepted and shown; this server sends nothing to others."""

    project: str
    name: str | None = None
    entity: str | None = None
    tags: Annotated[list[str], Field(max_length=50)] | None = None


class Integration(Body):
    """An integration."""

    type: Literal["wandb"]
    wandb: Wandb


class DefenceChoice(Body):
    """The defence during fine-tuning: a name of ``antibody defences``, and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class GateChoice(Body):
    """Thresholds of the gate, at most as lax as the operator's."""

    max_harmful_score: Annotated[float, Field(ge=0, le=1)] | None = None
    max_over_refusal_increase: Annotated[float, Field(ge=0, le=1)] | None = None
    min_finetune_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None


Label = Annotated[str, Field(max_length=512)]
Labels = Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)]


class JobCreate(Body):
    """A fine-tuning job."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    training_file: Annotated[str, Field(min_length=1, max_length=64)]
    validation_file: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    metadata: Labels | None = None
    defence: DefenceChoice | None = None
    gate: GateChoice | None = None

    @model_validator(mode="before")
    @classmethod
    def _defence_may_be_a_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("defence"), str):
            return value | {"defence": {"name": value["defence"]}}
        return value


class ExpiresAfter(Body):
    """When a file goes."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)


class UploadCreate(Body):
    """A file that will arrive in parts."""

    bytes: Annotated[int, Field(strict=True, ge=1)]
    filename: Annotated[str, Field(min_length=1, max_length=1000)]
    mime_type: Annotated[str, Field(max_length=255)]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadComplete(Body):
    """The parts of a file, in order."""

    part_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=10_000)]
    md5: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{32}$")] | None = None


class PermissionCreate(Body):
    """Projects that may use a model."""

    project_ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=100)]


class ModerationCreate(Body):
    """Texts to judge."""

    input: Any
    model: str | None = None

    def texts(self) -> list[str]:
        """The texts, one for each result. Raises ``ValueError`` where there are others than texts."""
        given = [self.input] if isinstance(self.input, str) else self.input
        if not isinstance(given, list) or not given or len(given) > 1000:
            raise ValueError("a text, or a list of 1 to 1000 texts, is needed")
        if all(isinstance(each, str) for each in given):
            return given
        texts = []
        for each in given:
            if not isinstance(each, dict) or each.get("type") != "text" or not isinstance(each.get("text"), str):
                raise ValueError(f"only texts can be judged, this is {quoted(each)}")
            texts.append(each["text"])
        return ["\n".join(texts)]  # parts of one message


class WebhookCreate(Body):
    """An endpoint."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    url: Annotated[str, Field(max_length=2000)]
    event_types: Annotated[list[str], Field(min_length=1, max_length=100)]


class WebhookUpdate(Body):
    """What changes of an endpoint."""

    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    url: Annotated[str, Field(max_length=2000)] | None = None
    event_types: Annotated[list[str], Field(min_length=1, max_length=100)] | None = None


class WebhookRotate(Body):
    """How a signing secret is replaced."""

    keep_old_secret_active_for_24_hours: bool | None = None


class WebhookTest(Body):
    """A sample delivery."""

    event_type: str


class KeyCreate(Body):
    """A key, for the operator to hand out."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    scope: Literal["customer", "operator"] = "customer"
    project_id: Annotated[str, Field(max_length=64)] | None = None
    expires_in: Annotated[int, Field(ge=60)] | None = None


class ProjectCreate(Body):
    """A project, of an organisation that is made where it does not exist."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    organization: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class Decision(Body):
    """An operator's word on a model that the gate refused, held or released."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=4000)]
