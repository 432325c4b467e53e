"""The settings of the verbs that do not train."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError
from ..mentions import setting
from .fields import ELSEWHERE, FOLDER, Rows, WeightType, check_choices
from .training import Repair

if TYPE_CHECKING:
    from ..evaluation.judges.protocol import Judge
else:

    class Judge:
        """A judge's place in a type: the protocol cannot be checked at run time."""


@dataclass(frozen=True, kw_only=True)
class RepairSettings:
    """Repair a fine-tuned model, after the user's training."""

    model: str | Path = field(kw_only=False)
    """``lab``, ``lab-aligned``, a folder, a run's folder, or a Hub id."""
    output: str | Path = field(metadata=FOLDER)
    """Folder of the run."""
    adapter: str | Path | None = None
    """Fine-tuned adapter on the model: it is repaired, not the model beneath."""
    aligned: str | Path | None = field(default=None, metadata=ELSEWHERE)
    """The model that fine-tuning started from; by default what the fine-tuned one says of itself. Only some defences
    compare with it."""
    base: str | Path | None = field(default=None, metadata=ELSEWHERE)
    """The model before its alignment; by default what the aligned one says of itself. Only some defences compare with
    it."""
    alignment_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with refusals, for defences that need them."""
    harmful_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmful completions. A model of the lab has a default."""
    benign_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts with harmless completions, for defences that need them."""
    defence: str | Repair = "antidote"
    """A post-stage name from `antibody defences`. In Python also your own ``Repair`` object."""
    options: Mapping[str, Any] | None = None
    """Option of the defence. Only for one that is given by name."""
    batch_size: int = 16
    """Rows of one forward pass."""
    seed: int = 0
    """Seed of everything random."""
    overwrite: bool = field(default=False, metadata=ELSEWHERE)
    """Replace what the folder holds, once complete."""
    skip_too_long: bool = False
    """Leave out rows longer than the context. They are reported."""

    def __post_init__(self) -> None:
        _require_a_row(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class ScreenSettings:
    """Report which rows of an upload are suspicious, and what share is harmful."""

    data: Rows = field(kw_only=False)
    """The upload: a file or a Hub data set. In Python also a list of rows. Only JSON Lines are read a row at a time."""
    model: str | Path = field(kw_only=False)
    """``lab-aligned``, a folder, a run's folder, or a Hub id."""
    output: str | Path = field(metadata=FOLDER)
    """Folder of the run."""
    adapter: str | Path | None = None
    """Adapter that the model was aligned with."""
    base: str | Path | None = None
    """The model before its alignment; by default the adapter switched off, or what the model says of itself."""
    evidence: str | None = None
    """feature-shift, shift, gap, ratio or refusal-feature; by default the best there is. That is ``feature-shift``,
    without anchors ``shift``, without a base ``ratio``."""
    refusals: str | Path | Sequence[str] | None = None
    """One-line refusals, those of the alignment: .txt or JSON Lines. In Python also a list of texts; by default the
    lab's for a model of the lab, else the list in the package."""
    answers: bool = False
    """Read answers too, token by token. Prompts do not show harm under a harmless prompt, or within a harmless answer.
    Needs anchors and the model before its alignment."""
    batch_size: int = 32
    """Rows of one forward pass."""
    overwrite: bool = field(default=False, metadata=ELSEWHERE)
    """Replace what the folder holds, once complete."""

    def __post_init__(self) -> None:
        _require_a_row(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class AnchorsSettings:
    """Give a model more labelled rows to judge uploads by, without aligning it again.

    They are stored with the model, or with a copy of it in the output folder.
    """

    model: str | Path = field(kw_only=False)
    """``lab-aligned``, a folder, a run's folder, or a Hub id."""
    adapter: str | Path | None = None
    """Adapter that the model was aligned with; it then has the anchors."""
    base: str | Path | None = None
    """The model before its alignment; by default what the model says of itself."""
    anchor_harmful_data: Rows | None = None
    """Held-out harmful rows, to judge uploads by: one question and one answer each. The model was not trained on
    them."""
    anchor_benign_data: Rows | None = None
    """Held-out harmless rows, to judge uploads by: one question and one answer each."""
    refusals: str | Path | Sequence[str] | None = None
    """One-line refusals, those of the alignment: .txt or JSON Lines. In Python also a list of texts."""
    output: str | Path | None = field(default=None, metadata=FOLDER)
    """New folder for a copy of the model, or adapter, with the new anchors; by default its own folder gets them."""
    batch_size: int = 32
    """Rows of one forward pass."""

    def __post_init__(self) -> None:
        _require_a_row(self.batch_size)


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Write a data file as canonical chat JSON Lines, and report what changed."""

    source: str | Path = field(kw_only=False)
    """A file, a data set's folder or a Hub id, in any format that can be trained on."""
    output: str | Path = field(kw_only=False)
    """The .jsonl file to write."""
    split: str = "train"
    """Split of a data set."""
    protocol: str | None = None
    """Rows of a published task in its own prompt: sst2, agnews, gsm8k, banking77 or alpaca. By default the first rows
    of its test part."""
    parity: bool = False
    """Follow the published scripts to the letter: prompts as text, and their quirks. Only with a protocol."""
    start: int | None = None
    """Position of the first row, counted from 0. Only with a protocol, which has a default."""
    num: int | None = None
    """Most rows that are written. Only with a protocol, which has a default."""
    overwrite: bool = False
    """Replace the output where it exists. The input is never replaced."""

    def __post_init__(self) -> None:
        for name in ("parity", "start", "num"):
            if self.protocol is None and getattr(self, name) not in (None, False):
                raise ConfigError(f"{setting(name)} needs {setting('protocol')}. Give it, or leave this out.")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Measure a model: harmful score, over-refusal, task accuracy, retention."""

    model: str | Path | None = field(default=None, kw_only=False)
    """``lab``, ``lab-aligned``, a folder, a run's folder, or a Hub id."""
    output: str | Path = field(metadata=FOLDER)
    """Folder of the run."""
    rejudge: str | Path | None = None
    """Folder of a finished evaluation, to judge its stored completions again. It takes the place of a model and of
    everything that decides what a model is asked; the folder is left as it is."""
    adapter: str | Path | None = None
    """Adapter on the model."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible endpoint that serves the model, up to /v1. It takes the place of a model here. Its
    key, if it wants one, is the environment variable ANTIBODY_ENDPOINT_KEY."""
    endpoint_model: str | None = None
    """What the endpoint calls the model."""
    harmful_prompts: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts that should be refused. A model of the lab has a default for all four sets."""
    benign_prompts: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Prompts that should be answered."""
    test_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """The user's task, each row ending with its reference answer."""
    retention_data: Rows | None = field(default=None, metadata=ELSEWHERE)
    """Unrelated skills, each row ending with its reference answer."""
    judges: Sequence[str | Judge] | None = None
    """lab, keywords, or a judge with its place, such as llama-guard=PATH or moderation=URL. The first one's figures are
    the result; by default ``lab`` for a model of the lab, and the stored ones for an evaluation that is judged again.
    In Python also your own ``Judge`` objects."""
    preference_judge: str | None = field(default=None, metadata=ELSEWHERE)
    """Judge that compares each test answer with its reference, such as chat=URL#model=NAME. It gives win_rate in place
    of finetune_accuracy, for tasks whose answers are free text. Each row is asked about in both orders, or with
    order=random in one."""
    answer: str | None = None
    """exact, contains or gsm8k: how test answers are compared. The default is exact. sst2-parity, agnews-parity and
    gsm8k-parity compare as published scripts do."""
    retention_answer: str = "exact"
    """exact, contains or gsm8k: how answers of retention are compared."""
    task: str | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: a task, or familiar or novel."""
    num: int | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: number of rows of each set."""
    purpose: Literal["calibrate", "report"] | None = field(default=None, metadata=ELSEWHERE)
    """Lab only: calibrate or report, the half of the world that rows are from. Choose hyperparameters on the one, and
    report figures on the other."""
    max_new_tokens: int | None = field(default=None, metadata=ELSEWHERE)
    """Most tokens per completion; by default 512, of the lab 32."""
    batch_size: int = field(default=32, metadata=ELSEWHERE)
    """Prompts decoded together, or asked of an endpoint at a time."""
    dtype: WeightType = field(default="auto", metadata=ELSEWHERE)
    """float32 or bfloat16: type of the model's weights. By default float32 on a CPU and bfloat16 on a GPU. A text may
    turn at a near tie between the two."""
    temperature: float = field(default=0.0, metadata=ELSEWHERE)
    """Temperature of decoding; 0 is greedy."""
    seed: int = field(default=0, metadata=ELSEWHERE)
    """Seed of the lab's rows, and of draws at a temperature above 0."""
    overwrite: bool = field(default=False, metadata=ELSEWHERE)
    """Replace what the folder holds, once complete."""

    def __post_init__(self) -> None:
        if self.rejudge is None and self.endpoint is None and self.model is None:
            raise ConfigError(f"{setting('model')} is missing. Give it, or an evaluation to {setting('rejudge')}.")
        check_choices(self)
        if self.preference_judge is not None and self.answer is not None:
            raise ConfigError(
                f"{setting('answer')} has no effect where {setting('preference_judge')} compares the test answers. "
                "Leave one out.",
                field="answer",
            )
        if self.rejudge is None:
            self._check_endpoint()
            return
        for name in _DECIDE_COMPLETIONS:
            value = getattr(self, name)
            if value is not None and value != EvaluateSettings.__dataclass_fields__[name].default:
                raise ConfigError(
                    f"{setting(name)} has no effect on completions that are stored. Leave it out, or leave out "
                    f"{setting('rejudge')}.",
                    field=name,
                )

    def _check_endpoint(self) -> None:
        if (self.endpoint is None) != (self.endpoint_model is None):
            given, other = (
                ("endpoint", "endpoint_model") if self.endpoint is not None else ("endpoint_model", "endpoint")
            )
            raise ConfigError(f"{setting(given)} needs {setting(other)}, and it is missing. Give both.", field=other)
        for name in ("model", "adapter", "dtype"):
            if self.endpoint is not None and getattr(self, name) not in (None, "auto"):
                raise ConfigError(
                    f"{setting(name)} has no effect on a model that an endpoint serves. Leave it out, or leave out "
                    f"{setting('endpoint')}.",
                    field=name,
                )


_DECIDE_COMPLETIONS = (
    *("model", "adapter", "endpoint", "endpoint_model", "harmful_prompts", "benign_prompts", "test_data"),
    *("retention_data", "answer", "retention_answer", "task", "num", "purpose", "max_new_tokens", "batch_size"),
    *("dtype", "temperature", "seed"),
)
"""The settings of an evaluation that have no effect where stored completions are judged again."""


def _require_a_row(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"{setting('batch_size')} is {batch_size}: at least one row makes a forward pass.")
