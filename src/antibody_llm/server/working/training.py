"""Training under a defence, with everything among the blobs that another worker needs to go on."""

import csv
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from ...store.result import RESULT
from ...text import counted
from ..verbs import servable
from .job import ClaimedWork, Event
from .weighing import weight_summary

EVENT_SECONDS = 1.0
"""Least time between two events of a step; the result file has what happened in between."""
HERE = "<the job's folder>"
"""Replaces a claim's folder in what is stored of a run: the next claim has another one."""
LIKELY_HARM = "likely harm"
"""Why a defence leaves out a row, in ``store.result.Skipped``."""
PAIRS_RIGHT = "rewards/accuracies"
"""DPO's metric of a step: the share of its pairs whose preferred answer has gained more than the other."""
COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""Columns of the result file, as the hosted API has them; a cell is empty where nothing was measured."""


def train(work: ClaimedWork) -> None:
    """Train the job's model, or go on from its newest checkpoint, and record the result as ``private.trained``.

    Raises:
        JobFailed: it cannot be trained.
    """
    if work.job.method == "dpo" and work.job.validation_file is not None:
        told = "The pairs of the validation file are not measured: accuracy counts exact answers, and a pair has none."
        work.event(told, level="warn", key="validation")
    data = work.fetched(work.job.training_file, "training.jsonl")
    _restore(work)
    start = work.start()
    arguments = {
        "method": work.job.method,
        "model": start.model,
        "adapter": start.adapter,
        "base": work.offered.base or None,
        "data": str(data),
        "output": str(work.folder / "run"),
        "defence": work.job.defence["name"],
        "options": dict(work.job.defence["options"]),
        "seed": work.job.seed,
        "hyperparameters": dict(work.job.hyperparameters),
    }
    listener = _Listener(work)
    result = work.run("train", arguments, listener, again=lambda: _begin_again(work, listener))
    _tell_skipped(work, result["skipped"])
    folder = Path(result["model"])
    for step in work.private.get("steps", ()):
        row = work.queue.model(work.job.model_name(step))
        if row is not None:  # how a defence wants its model prompted is known at the end
            with work.blobs.writing(f"{row.adapter}/antibody.json") as file:
                file.write((folder / "antibody.json").read_bytes())
    table = work.folder / "step_metrics.csv"
    table.write_bytes(step_metrics((work.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")))
    trained = {
        "adapter": work.blobs.store_folder(folder),
        "num_tokens": listener.tokens,
        "metrics": work.stored(table, "results"),
    }
    work.keep(trained=trained, weights=weight_summary(work.folder / "run" / "samples.parquet"))


def _tell_skipped(work: ClaimedWork, skipped: list[dict[str, Any]]) -> None:
    """An event for each reason why rows were left out. Which rows are likely harm is screening's to show, or not."""
    for why in dict.fromkeys(row["why"] for row in skipped):
        of_kind = [row["line"] for row in skipped if row["why"] == why]
        told = f"{counted(len(of_kind), 'row was', 'rows were')} left out ({why})"
        if why != LIKELY_HARM or work.settings.screening.row_report != "none":
            told += f": lines {', '.join(map(str, of_kind[:20]))}" + (", ..." if len(of_kind) > 20 else "")
        work.event(f"{told}.", level="warn", key=f"skipped-{why}")


def step_metrics(metrics: str) -> bytes:
    """The result file of metrics.jsonl."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in map(json.loads, metrics.splitlines()):
        if "loss" in entry:
            accuracy = {"train_accuracy": entry[PAIRS_RIGHT]} if PAIRS_RIGHT in entry else {}
            writer.writerow({"step": entry["step"], "train_loss": entry["loss"]} | accuracy)
    return text.getvalue().encode()


class _Listener:
    """Forwards what training reports."""

    def __init__(self, work: ClaimedWork) -> None:
        self.work = work
        self.loss = 0.0
        self.num_steps = 0
        self.tokens: int = work.private.get("tokens", 0)
        """Tokens trained on so far; a step that is repeated counts once."""
        self.first: tuple[int, float] | None = None
        self.last = 0.0

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "resolved":
            told = {"defence": dict(self.work.job.defence)}
            self.work.queue.resolved(self.work.claimed, hyperparameters=event["hyperparameters"], safety=told)
        elif kind == "step":
            self.tokens += event["tokens"]
            self._step(event["step"], event["num_steps"], event["metrics"])
        elif kind == "checkpoint":
            # One that only the end of a worker made is there to go on from, and not to be asked.
            shown = event.get("planned", True) or self.work.held.pause
            self._checkpoint(event["step"], Path(event["folder"]), shown=shown)

    def _step(self, step: int, num_steps: int, metrics: dict[str, Any]) -> None:
        self.loss, self.num_steps, now = metrics["loss"], num_steps, time.monotonic()
        self.first = self.first or (step, now)
        if now - self.last < EVENT_SECONDS and step < num_steps:
            return
        self.last = now
        accuracy = {"train_accuracy": metrics[PAIRS_RIGHT]} if PAIRS_RIGHT in metrics else {}
        self.work.event(
            f"Step {step}/{num_steps}: training loss={self.loss:.4f}",
            kind="metrics",
            data={"step": step, "total_steps": num_steps, "train_loss": self.loss} | accuracy,
            key=f"step-{step}",
        )
        if (done := step - self.first[0]) > 0:
            left = (now - self.first[1]) / done * (num_steps - step)
            self.work.queue.resolved(self.work.claimed, estimated_finish=time.time() + left, trained_tokens=self.tokens)

    def _checkpoint(self, step: int, taken: Path, *, shown: bool) -> None:
        """Store a checkpoint, to go on from and (``shown``) to be asked; then the one that it replaces may go."""
        work, steps = self.work, list(self.work.private.get("steps", ()))
        if shown and step not in steps and step < self.num_steps:  # the last one is the result itself
            folder = servable(taken, work.folder / "servable" / str(step))
            adapter = work.blobs.store_folder(folder)
            work.queue.checkpoint(work.claimed, step=step, metrics={"train_loss": self.loss}, adapter=adapter)
            steps.append(step)
        state = work.folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        (state / "checkpoints").mkdir(parents=True)
        taken.rename(state / "checkpoints" / taken.name)
        # The stage goes on meanwhile. Where it is at its end already, the state must not say so: the trained weights
        # are no part of it, and whoever goes on from here would look for them.
        for path in (work.folder / "run").iterdir():
            if path.is_file() and not path.name.startswith(".") and path.name != RESULT:
                shutil.copy2(path, state / path.name)
        _move_config(work.folder / "run", state, str(work.folder), HERE)
        old = work.private.get("run")
        work.keep(run=work.blobs.store_folder(state, "runs"), steps=steps, tokens=self.tokens)
        if old:
            work.blobs.delete(old)


def _begin_again(work: ClaimedWork, listener: _Listener) -> None:
    """Back to the newest stored checkpoint: of a later one that died with its process nobody has heard."""
    shutil.rmtree(work.folder / "run", ignore_errors=True)
    _restore(work)
    listener.tokens = work.private.get("tokens", 0)


def _restore(work: ClaimedWork) -> None:
    """The run as its newest stored checkpoint left it, where there is one."""
    if prefix := work.private.get("run"):
        run = work.blobs.fetch_folder(prefix, work.folder / "run")
        _move_config(run, run, HERE, str(work.folder))


def _move_config(source: Path, target: Path, old: str, new: str) -> None:
    """Write a run's configuration as if its files had always lain in another folder."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value

    config = moved(yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8")))
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (target / "config.yaml").write_text(text, encoding="utf-8")
