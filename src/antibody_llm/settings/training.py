"""The settings of the verbs that train: align and finetune."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..data.roles import Role, Stage, setting_of
from .fields import ELSEWHERE, FOLDER, Rows, check_choices

if TYPE_CHECKING:
    from ..training.defence import Defence as Defence
    from ..training.defence import Repair as Repair
else:

    class Defence:
        """A defence's place in a type: the class itself would bring torch."""

    class Repair:
        """A post-stage defence's place in a type."""


Regime = Literal["lora", "full"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What align and finetune share."""

    stage: ClassVar[Stage]

    model: str | Path = field(kw_only=False)
    """``lab``, ``lab-aligned``, a folder, a run's folder, or a Hub id."""
    output: str | Path = field(metadata=FOLDER)
    """Folder of the run."""
    adapter: str | Path | None = None
    """Adapter on the model, to go on with."""
    base: str | Path | None = None
    """The model before its alignment. Defences that compare with it need it."""
    defence: str | Defence = "antibody"
    """A name from `antibody defences`. In Python also your own ``Defence`` object."""
    options: Mapping[str, Any] | None = None
    """Option of the defence. Only for one that is given by name."""
    refusals: str | Path | Sequence[str] | None = None
    """One-line refusals: .txt or JSON Lines. In Python also a list of texts; by default the list in the package."""
    regime: Regime = "lora"
    """What is trained: lora writes an adapter, full a whole model."""
    lora: Mapping[str, Any] | None = None
    """r, alpha, targets or dropout of a new adapter."""
    seed: int = 0
    """Seed of everything random."""
    epochs: float | None = field(default=None, metadata=ELSEWHERE)
    """Passes over the data."""
    batch_size: int | None = field(default=None, metadata=ELSEWHERE)
    """Rows of one forward pass on one device."""
    learning_rate: float | None = field(default=None, metadata=ELSEWHERE)
    """Peak of the learning rate."""
    training: Mapping[str, Any] | None = None
    """Further field of TRL's SFTConfig. ``runs.trainer_config.HONOURED`` lists those that may be set."""
    resume: bool = field(default=False, metadata=ELSEWHERE)
    """Go on with the run that the folder holds. Without one this is an error."""
    overwrite: bool = field(default=False, metadata=ELSEWHERE)
    """Replace what the folder holds, once complete."""
    skip_too_long: bool = False
    """Leave out rows longer than the context. They are reported."""
    control_tokens: Literal["text", "refuse"] = "text"
    """Rows that spell control tokens: text trains them as text, refuse leaves them out. Both count and report them."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class AlignSettings(TrainingSettings):
    """Make a model resistant before any user arrives."""

    stage = Stage.ALIGNMENT

    alignment_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with refusals. A model of the lab has a default for every set of rows."""
    harmful_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmful completions, for defences that need them."""
    benign_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmless completions, trained together with the refusals."""
    anchor_harmful_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Held-out harmful rows, to judge uploads by. They are not trained on: their evidence is stored with the model.
    Their answers count only for measures that read answers."""
    anchor_benign_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Held-out harmless rows, to judge uploads by. They are not trained on either."""
    num: int | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: number of alignment rows."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainingSettings):
    """Train on a user's upload, under a defence."""

    stage = Stage.FINETUNING

    data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """The upload: a file or a Hub data set. In Python also a list of rows; a model of the lab has a default."""
    method: Literal["sft", "dpo"] = field(default="sft", metadata=ELSEWHERE)
    """How it is learnt: sft from answers, dpo from pairs of a preferred answer and another one. The defences of dpo
    are ``sft`` and ``antibody-posterior``."""
    beta: float | None = field(default=None, metadata=ELSEWHERE)
    """How strongly dpo holds the model to where it starts, above 0; by default 0.1. Higher moves it less."""
    alignment_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with refusals, for defences that need them."""
    harmful_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmful completions, for defences that need them."""
    benign_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmless completions, for defences that need them."""
    task: str | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: a task, or familiar or novel."""
    poison_ratio: float | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: harmful share of the upload, 0 to 1."""
    num: int | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: number of rows of the upload."""
    purpose: Literal["calibrate", "report"] | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: calibrate or report, the half of the world that rows are from. Choose hyperparameters on the one, and
    report figures on the other."""


def rows_of(settings: Any) -> dict[Role, Rows | None]:
    """What a verb was given for each role that it knows."""
    return {role: getattr(settings, setting_of(role)) for role in Role if hasattr(settings, setting_of(role))}
