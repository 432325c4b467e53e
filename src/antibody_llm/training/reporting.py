"""Events of training: its start, each step, each checkpoint, and its end if a listener asks for one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..events import CheckpointSaved, Progress, StepDone, Stopped, emit, inform, stop_asked
from ..likelihood.ranks import all_reduce
from .batches import rows_of_step

if TYPE_CHECKING:
    from .trainer import StepTrainer


class StepReports(TrainerCallback):
    """Reports each optimiser step, and ends training after one if the listener of the first process asks for it."""

    def __init__(self, trainer: "StepTrainer") -> None:
        self.trainer = trainer
        self.stops = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report what is trained and at which step it begins."""
        defence = self.trainer.defence
        what = f"{defence.stage}, {type(defence).__name__}"
        emit(Progress(what=what, done=state.global_step, total=state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step; if a stop is asked for, save a checkpoint first."""
        trainer, rows = self.trainer, self.trainer._main_rows
        of_step = rows_of_step(len(rows), trainer.grid, args.seed, state.global_step - 1)
        emit(
            StepDone(
                step=state.global_step,
                max_steps=state.max_steps,
                epoch=state.epoch,
                loss=trainer.last_loss,
                learning_rate=trainer.context.learning_rate,
                tokens=sum(map(trainer.num_tokens, of_step)),
                metrics=trainer.last_metrics,
            )
        )
        # Only the first process has a listener, and a process that continued alone would wait forever.
        self.stops = bool(all_reduce(torch.tensor(float(stop_asked()), device=args.device), "max"))
        if self.stops:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the checkpoint, and end the run if a stop was asked for.

        Raises:
            Stopped: a stop was asked for.
        """
        step, steps = state.global_step, state.max_steps
        by_steps = args.save_strategy == "steps" and step % state.save_steps == 0
        planned = not self.stops or by_steps or step == steps
        emit(CheckpointSaved(step=step, path=str(Path(args.output_dir) / f"checkpoint-{step}"), planned=planned))
        if self.stops:
            message = f"stopped after step {step} of {steps}, as asked. The same call goes on from there."
            inform(message)
            raise Stopped(message, step=step)
