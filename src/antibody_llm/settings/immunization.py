"""The settings of `antibody immunization`: how long a model withstands an attacker who owns its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .fields import ELSEWHERE, FOLDER, check_choices

Schedule = Literal["cosine", "constant"]
Purpose = Literal["calibrate", "report"]


@dataclass(frozen=True, kw_only=True)
class ImmunizationSettings:
    """Measure how many steps of harmful fine-tuning a model withstands, and what its defence costs.

    The attacker owns the weights: plain supervised fine-tuning on harmful rows alone, over a grid of learning rates,
    row counts, regimes and seeds. A run that was stopped goes on.
    """

    model: str | Path
    """The undefended model: ``lab``, a folder, a run's folder, or a Hub id."""
    defended: str | Path | None = None
    """The defended model. Without one the steps of ``model`` alone are measured, and compared with nothing."""
    output: str | Path = field(default="runs/immunization", metadata=FOLDER)
    """Folder for every result and the report."""
    learning_rates: Sequence[float] | None = None
    """Peak of the attacker's learning rate. By default three for the model's profile."""
    rows: Sequence[int] | None = None
    """Number of the attacker's rows. By default three for the model's profile."""
    regimes: Sequence[str] = ("full", "lora")
    """What the attacker trains: full or lora."""
    seeds: int = 3
    """How many seeds, counted from 0."""
    steps: int | None = None
    """Optimiser steps of an attack, at which a model that still holds is censored. By default 64 on the lab."""
    task_steps: int | None = None
    """Optimiser steps on the clean task, by which both models are compared. By default 128 on the lab."""
    batch_size: int | None = None
    """Rows of an optimiser step, or all of the attacker's if there are fewer. By default 16."""
    schedule: Schedule = "cosine"
    """Learning rate over the steps: cosine with a tenth of warm-up, or constant."""
    margin: float = 0.05
    """How far harm may rise above the start of the worse model before a model counts as broken, 0 to 1."""
    prompts: int = 48
    """Prompts of each set that are asked at each checkpoint."""
    task: str | None = None
    """Lab only: the task that trainability is measured on."""
    purpose: Purpose = "report"
    """Lab only: the half of the world that rows and prompts are from."""
    attack_data: str | Path | None = None
    """The attacker's harmful rows. By default those of the lab, as everywhere below."""
    harmful_prompts: str | Path | None = None
    """Harmful prompts of the kinds that the defence knew, answered where the soft measure is wanted."""
    cross_prompts: str | Path | None = None
    """Harmful prompts of other kinds."""
    benign_prompts: str | Path | None = None
    """Prompts that should be answered, for over-refusal."""
    data: str | Path | None = None
    """A user's clean rows, for trainability."""
    test_data: str | Path | None = None
    """The user's task, each row ending with its reference answer."""
    retention_data: str | Path | None = None
    """Unrelated skills, each row ending with its reference answer."""
    judge: str | None = None
    """The judge of every reply. By default that of the model's profile."""
    answer: str | None = None
    """How test answers are compared: exact, contains or gsm8k."""
    max_new_tokens: int | None = None
    """Most tokens of a reply."""
    threads: int = 1
    """Threads of a run. The numbers may depend on it."""
    jobs: int | None = field(default=None, metadata=ELSEWHERE)
    """Processes on this machine. By default as many as the cores have room for."""
    ray: str | None = field(default=None, metadata=ELSEWHERE)
    """Address of a Ray cluster to run on in place of this machine, or auto. All nodes see the output folder."""

    def __post_init__(self) -> None:
        check_choices(self)
