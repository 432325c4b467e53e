"""Fine-tune a model on a user's upload, under a defence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data.roles import Role, Stage
from ..store.result import RunResult
from ..training.step import Defence
from .lab_defaults import LabData
from .settings import merged_training
from .sources import Rows
from .train import Regime, TrainingRun, train


def finetune(
    model: str | Path,
    *,
    output: str | Path,
    data: Rows | None = None,
    adapter: str | Path | None = None,
    base: str | None = None,
    defence: str | Defence = "antibody",
    options: Mapping[str, Any] | None = None,
    alignment_data: Rows | None = None,
    harmful_data: Rows | None = None,
    benign_data: Rows | None = None,
    refusals: str | Path | Sequence[str] | None = None,
    num: int | None = None,
    task: str | None = None,
    poison_ratio: float | None = None,
    regime: Regime = "lora",
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    training: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    skip_too_long: bool = False,
    control_tokens: str = "text",
    progress: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> RunResult:
    """Fine-tune ``model`` on ``data``.

    Args:
        model: ``lab``, ``lab-aligned``, a folder, the folder of a run, or a Hub id.
        output: The run's folder.
        data: The upload. A model of the lab has a default.
        adapter: An adapter on ``model`` to go on with.
        base: The model before its alignment, for defences that compare with it.
        defence: A name in the catalogue, or a defence of one's own.
        options: Its hyperparameters, where it is given by name.
        alignment_data: Prompts with refusals, for defences that need them; likewise the next two.
        harmful_data: Prompts with harmful completions.
        benign_data: Prompts with harmless completions.
        refusals: A file or a list of one-line refusals; by default the list that comes with the package.
        num: Rows of the upload, where it comes from the lab; likewise the next two.
        task: A task's name, or ``familiar`` (the default) or ``novel``.
        poison_ratio: Harmful share of the upload, 0 to 1.
        regime: ``lora`` writes an adapter, ``full`` a whole model.
        lora: r, alpha, targets and dropout of a new adapter.
        seed: Of everything random.
        epochs: Passes over the upload.
        batch_size: Rows of one forward pass on one device.
        learning_rate: Peak.
        training: Further fields of TRL's SFTConfig; ``settings.HONOURED`` lists them.
        resume: Insist that the folder holds this run already.
        overwrite: Replace what the folder holds, once the new run is complete.
        skip_too_long: Leave out rows that are longer than the context, and tell which.
        control_tokens: ``text`` trains rows that spell control tokens as the text that they are; ``refuse`` leaves
            them out. Both count and report them.
        progress: Show a bar on stderr, if that is a terminal.
        callbacks: Further ones for the Trainer.

    Raises:
        AntibodyError: whatever a user can mend; until training begins nothing has been written.
    """
    return train(
        TrainingRun(
            stage=Stage.FINETUNING,
            model=model,
            adapter=adapter,
            base=base,
            output=output,
            data={
                Role.USER: data,
                Role.ALIGNMENT: alignment_data,
                Role.HARMFUL: harmful_data,
                Role.BENIGN: benign_data,
            },
            refusals=refusals,
            lab=LabData(num=num, task=task, poison_ratio=poison_ratio),
            defence=defence,
            options=options,
            regime=regime,
            lora=lora,
            training=merged_training(training, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
            seed=seed,
            skip_too_long=skip_too_long,
            control_tokens=control_tokens,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            callbacks=tuple(callbacks),
        )
    )
