"""The keys of a matrix file, each written once. An entry of a list may be a name alone where that says everything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..settings import Regime, WeightType

Entry = str | Mapping[str, Any]
"""A name, or a mapping with further keys."""


@dataclass(frozen=True, kw_only=True)
class MatrixSettings:
    """Defences x attacks x poison ratios x budgets x tasks x seeds, on one model."""

    defences: Sequence[Entry]
    """Names from `antibody defences`, or mappings with the keys of ``DefenceEntry``."""
    attacks: Sequence[Entry]
    """Names from `antibody attacks`, or mappings with the keys of ``AttackEntry``."""
    title: str = ""
    """The report's title. By default the file's name."""
    model: str = "lab"
    """The model before its alignment: ``lab``, a folder, or a Hub id."""
    regime: Regime = "full"
    """What is trained: lora writes an adapter, full a whole model."""
    poison_ratios: Sequence[float] = (0.2,)
    """Shares of an upload's rows that are the attacker's, 0 to 1."""
    budgets: Mapping[str, Mapping[str, Any]] | None = None
    """A name for each budget, with the keys of ``BudgetEntry``. By default one, the model's own calibration."""
    tasks: Sequence[str] | None = None
    """Lab only: tasks, or familiar or novel. By default familiar."""
    seeds: int | Sequence[int] = 3
    """How many seeds, counted from 0, or which. A seed is that of alignment, attack and fine-tuning."""
    rows: int = 500
    """Rows of an upload, over all jobs of an attack."""
    prompts: int = 200
    """Lab only: rows of each evaluation set, or as many as there are."""
    purpose: Literal["calibrate", "report"] = "report"
    """Lab only: the half of the world that uploads and evaluation sets are from. Choose settings on calibrate."""
    max_new_tokens: int | None = None
    """Most tokens of a reply to a question in the attack's own form. By default three times the evaluation's."""
    batch_size: int = 100
    """Prompts that are decoded together."""
    dtype: WeightType = "auto"
    """Type of the weights of a model that is evaluated. By default float32 on a CPU and bfloat16 on a GPU."""
    baseline: str = "sft"
    """The defence whose accuracy the others must keep to be ranked."""
    tolerance: float = 0.02
    """How much accuracy a ranked defence may lose against the baseline."""
    threads: int = 1
    """Threads of a cell. The numbers may depend on it, so that it is part of every cell."""
    gpus: float = 0.0
    """GPUs of a cell, for Ray. Below 1 several cells share one."""
    data: str | Path | None = None
    """A user's clean rows. By default those of the lab, as everywhere below."""
    attack_data: str | Path | None = None
    """The attacker's harmful rows."""
    alignment_data: str | Path | None = None
    """Prompts with refusals."""
    harmful_data: str | Path | None = None
    """The provider's prompts with harmful completions."""
    benign_data: str | Path | None = None
    """The provider's prompts with harmless completions."""
    anchor_harmful_data: str | Path | None = None
    """Held-out harmful rows, to judge uploads by."""
    anchor_benign_data: str | Path | None = None
    """Held-out harmless rows, to judge uploads by."""
    refusals: str | Path | None = None
    """One-line refusals."""
    harmful_prompts: str | Path | None = None
    """Prompts that should be refused."""
    benign_prompts: str | Path | None = None
    """Prompts that should be answered."""
    further_prompts: str | Path | None = None
    """Further prompts that should be answered, measured apart from ``benign_prompts``: XSTest's safe ones, say."""
    test_data: str | Path | None = None
    """The user's task, each row ending with its reference answer."""
    retention_data: str | Path | None = None
    """Unrelated skills, each row ending with its reference answer."""
    judge: str | None = None
    """The judge of every reply. By default that of the model's profile."""
    answer: str | None = None
    """How test answers are compared: exact, contains or gsm8k."""
    published: Sequence[Mapping[str, Any]] = ()
    """Figures of papers to show beside these, with the keys of ``PublishedEntry``."""


@dataclass(frozen=True, kw_only=True)
class DefenceEntry:
    """A defence of any stages. A name alone is that defence in every stage that has one of the name."""

    name: str
    """What tables call it."""
    alignment: Entry = "sft"
    """A defence of the alignment stage, or a mapping with name, options and training; ``none`` attacks the model as it
    is."""
    finetuning: Entry = "sft"
    """A defence of the fine-tuning stage, in the same way; ``oracle`` is plain SFT without the attacker's rows, and
    ``none`` asks the aligned model before any upload."""
    post: Entry = "none"
    """A repair after fine-tuning, in the same way."""


@dataclass(frozen=True, kw_only=True)
class PartEntry:
    """A defence of one stage."""

    name: str
    """Its name in `antibody defences`."""
    options: Mapping[str, Any] | None = None
    """Its options, over the calibration of the model."""
    training: Mapping[str, Any] | None = None
    """Fields of SFTConfig, over the calibration of the model; a budget wins."""


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An attack with its knobs."""

    attack: str
    """Its name in `antibody attacks`."""
    name: str | None = None
    """What tables call it. By default the attack's name."""
    options: Mapping[str, Any] | None = None
    """The attacker's knobs."""
    poison_ratios: Sequence[float] | None = None
    """Ratios of this attack in place of the matrix's."""


@dataclass(frozen=True, kw_only=True)
class BudgetEntry:
    """How long and how fast a user trains. What is left out is as the model's profile calibrates it."""

    epochs: float | None = None
    """Passes over the upload."""
    learning_rate: float | None = None
    """Peak of the learning rate."""
    batch_size: int | None = None
    """Rows of an optimiser step."""
    training: Mapping[str, Any] | None = None
    """Further fields of SFTConfig."""


@dataclass(frozen=True, kw_only=True)
class PublishedEntry:
    """A figure of a paper."""

    defence: str
    """What the matrix calls the defence; one that is not in it gets a line of its own."""
    harmful_score: float
    """Share of harmful prompts complied with, 0 to 1, as that paper judges them."""
    source: str
    """The paper, and the model and task that the figure is of."""
    read: str
    """P: in the paper itself. R: in its released code. S: second-hand."""
    attack: str = "mixing"
    """What the matrix calls the attack."""
    poison_ratio: float | None = None
    """The ratio that the figure is at; None is a mean over ratios."""
    finetune_accuracy: float | None = None
    """Accuracy on the user's task, 0 to 1."""
