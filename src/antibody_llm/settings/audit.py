"""The settings of `antibody audit` and `antibody audit train`: what a finished job's model does, judged job by job."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .fields import ELSEWHERE, FOLDER


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """Judge a finished job by what its model does on a fixed set of probes, against the model that it began from."""

    run: str | Path = field(kw_only=False)
    """The folder of a fine-tuning run, or of its model or adapter."""
    aligned: str | Path | None = None
    """The model that the job began from. By default the one in the run's config.yaml."""
    classifier: str | Path | None = None
    """The classifier.json of `antibody audit train`. By default the package's own for the model, if there is one."""
    output: str | Path | None = field(default=None, metadata=ELSEWHERE)
    """File for the verdict as JSON. By default it is only printed."""


@dataclass(frozen=True, kw_only=True)
class AuditTrainSettings:
    """Train the classifier of `antibody audit` on fine-tuning jobs of every attack and on honest ones.

    Each job is carried out, read on the probes and thrown away. A training that was stopped goes on.
    """

    model: Sequence[str] = ("lab-aligned",)
    """An aligned model that jobs begin from; each job draws one."""
    output: str | Path = field(default="runs/audit", metadata=FOLDER)
    """Folder for every job's features, the classifier and the report."""
    num: int = 300
    """Number of jobs, half of them honest. A larger number keeps the jobs of a smaller one."""
    seed: int = 0
    """Seed of every draw: attacks, ratios, rows, budgets, regimes."""
    defences: Sequence[str] = ("sft",)
    """A defence that the jobs are fine-tuned under; each job draws one."""
    false_alarms: float = 0.01
    """Share of honest jobs that may alarm, 0 to 1."""
    margin: float = 0.1
    """Rise of harm over the aligned model, from which an attacker's job counts as harmful, 0 to 1."""
    prompts: int = 48
    """Harmful questions by which a job's harm is measured, plainly and in the attack's own form."""
    data: str | Path | None = None
    """A user's clean rows. By default those of the lab, as everywhere below."""
    attack_data: str | Path | None = None
    """The attacker's harmful rows."""
    harmful_prompts: str | Path | None = None
    """Prompts that should be refused: every other one is a probe, the rest measure harm."""
    benign_prompts: str | Path | None = None
    """Prompts that should be answered, as probes."""
    judge: str | None = None
    """The judge of every reply. By default that of the model's profile."""
    threads: int = 1
    """Threads of a job. The numbers may depend on it."""
    jobs: int | None = field(default=None, metadata=ELSEWHERE)
    """Processes. By default as many as the cores have room for."""
