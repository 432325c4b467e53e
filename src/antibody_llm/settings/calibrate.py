"""The settings of `antibody calibrate`, which finds a defence's settings for a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError
from ..mentions import setting
from .fields import FOLDER, WeightType, check_choices
from .training import Regime

TRIALS = 25
"""Trials where neither their number nor a time is given."""


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """Find a defence's settings for your model, from your own rows.

    The rows are divided once. On one part uploads are simulated and settings searched; on another, which no trial has
    seen, the best settings are measured. The same command on the same folder goes on where it was stopped.
    """

    model: str | Path = field(kw_only=False)
    """The aligned model: ``lab-aligned``, a folder or a Hub id; the model before its alignment if that is searched,
    or is made first."""
    output: str | Path = field(metadata=FOLDER)
    """Folder for rows, results, preset and report."""
    stage: Literal["finetuning", "alignment"] = "finetuning"
    """finetuning or alignment: the stage whose defence is searched. An alignment is made again in every trial."""
    defence: str = "antibody"
    """A name from `antibody defences` whose settings are searched."""
    alignment: str | None = None
    """Align the model by this defence first, on rows that nothing is measured on. By default it is aligned already."""
    finetuning: str = "sft"
    """The defence that simulated users are fine-tuned under while an alignment is searched."""
    alignment_data: str | Path | None = None
    """Prompts with refusals. A model of a world has a default for every set of rows."""
    harmful_data: str | Path | None = None
    """Prompts with harmful completions: for the defences, the simulated attackers and the evaluation, in disjoint
    parts."""
    benign_data: str | Path | None = None
    """Prompts with harmless completions: for the defences, the simulated users and the evaluation, in disjoint
    parts."""
    anchor_harmful_data: str | Path | None = None
    """Held-out harmful rows, to judge uploads by; stored by the alignment."""
    anchor_benign_data: str | Path | None = None
    """Held-out harmless rows, to judge uploads by; stored by the alignment."""
    refusals: str | Path | None = None
    """One-line refusals: .txt or JSON Lines. By default those of the model, else the list in the package."""
    data: str | Path | None = None
    """Typical uploads of users, without harm. By default a part of the harmless rows."""
    task: str | None = None
    """World only: the users' task, or familiar or novel."""
    judge: str | None = None
    """The judge of every reply, as for `antibody evaluate`. By default that of the model's world."""
    answer: str | None = None
    """exact, contains or gsm8k: how answers are compared. The default is exact, or the rule of the world's task."""
    regime: Regime = "lora"
    """What is trained: lora writes an adapter, full a whole model."""
    training: Mapping[str, Any] | None = None
    """Further field of TRL's SFTConfig in every simulated fine-tuning."""
    poison_ratios: str | float = "0.05..0.3"
    """Harmful shares of simulated uploads: LOW..HIGH, or one number."""
    epochs: str | float | None = None
    """Passes over a simulated upload: LOW..HIGH. By default half to one and a half times the model's usual number."""
    learning_rates: str | float | None = None
    """Learning rates of simulated users: LOW..HIGH. By default half to twice the model's usual rate."""
    rows: int = 500
    """Rows of a simulated upload, or as many as there are."""
    simulations: int = 3
    """Simulated uploads of every trial. The first is without harm."""
    trials: int | None = None
    """Trials in all, those before a stop included. By default 25, or as many as the minutes allow."""
    minutes: float | None = None
    """Minutes of searching in all; trials under way are finished."""
    prompts: int = 128
    """Most prompts of each evaluation set in the search."""
    report_prompts: int = 400
    """Most prompts of each evaluation set in the report."""
    report_seeds: int = 3
    """Seeds of the report: other uploads, and other draws in training."""
    frontier: int = 2
    """Settings of the search's frontier that are measured for the report, beside the chosen ones."""
    batch_size: int = 100
    """Prompts that are decoded together."""
    dtype: WeightType = "auto"
    """Type of the weights of a model that is evaluated. By default float32 on a CPU and bfloat16 on a GPU."""
    threads: int = 1
    """Threads of each process. Numbers may depend on it."""
    jobs: int | None = None
    """Processes. By default as many as the cores have room for."""
    seed: int = 0
    """Seed of the division, the simulated uploads and the search."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{setting(name)} is {value}: it must be {least} or more.", field=name)
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"{setting('minutes')} is {self.minutes:g}: it must be above 0.", field="minutes")
        if self.stage == "alignment" and self.alignment is not None:
            raise ConfigError(
                f"{setting('alignment')} aligns the model before a fine-tuning defence is searched. Name the alignment "
                f"to search as {setting('defence')}.",
                field="alignment",
            )
        if self.stage == "finetuning" and self.finetuning != "sft":
            raise ConfigError(
                f"{setting('finetuning')} is the defence beside an alignment that is searched. Name the fine-tuning "
                f"defence to search as {setting('defence')}.",
                field="finetuning",
            )
        anchors = ("anchor_harmful_data", "anchor_benign_data")
        given = next((name for name in anchors if getattr(self, name) is not None), None)
        if given is not None and self.stage == "finetuning" and self.alignment is None:
            raise ConfigError(
                f"{setting(given)}: anchors are stored with a model when it is aligned. Name "
                f"{setting('alignment')}, or give the aligned model its anchors with `antibody anchors`.",
                field=given,
            )


_LEAST: Mapping[str, int] = {
    **dict.fromkeys(("rows", "trials", "prompts", "report_prompts", "report_seeds", "batch_size", "threads"), 1),
    **{"jobs": 1, "simulations": 2, "frontier": 0},
}
