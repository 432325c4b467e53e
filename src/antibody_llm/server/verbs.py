"""The verbs of ``runs`` as stages of a job: settings in, events out. What calls the verbs is here alone."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from ..events import CheckpointSaved, Event, Level, Listener, Notice, StepDone, Wish

Emit = Callable[[str, dict[str, Any]], None]
TAKEN = "taken"
"""Folder beside a run, with copies of its checkpoints that whoever listens takes away."""
NOT_SERVED = (".pt", ".pth", ".bin", ".pkl", ".md", "trainer_state.json")
"""How files of a checkpoint end that only going on needs: no pickle is ever served."""
GENERAL: dict[str, dict[str, Any]] = {
    "lora": {"n_epochs": 3, "batch_size": 8, "learning_rate": 2e-4},
    "full": {"n_epochs": 3, "batch_size": 8, "learning_rate": 2e-5},
}
"""What ``auto`` means; the batch is smaller where a file has fewer rows."""
LAB: dict[str, dict[str, Any]] = {
    "lora": {"n_epochs": 8, "batch_size": 16, "learning_rate": 1e-3},
    "full": {"n_epochs": 4, "batch_size": 16, "learning_rate": 2e-4},
}
"""What ``auto`` means where the model is the lab's. An adapter learns its familiar task at these (accuracy 100 %,
defended or not); after 4 epochs at 5e-4 it does not (52.5 %)."""

GENERAL_DPO: dict[str, dict[str, Any]] = {
    "lora": {"n_epochs": 3, "batch_size": 8, "learning_rate": 1e-5, "beta": 0.1},
    "full": {"n_epochs": 3, "batch_size": 8, "learning_rate": 1e-6, "beta": 0.1},
}
"""What ``auto`` means for preferences: TRL's rate for full fine-tuning, and ten times as much for an adapter."""
LAB_DPO: dict[str, dict[str, Any]] = {
    "lora": {"n_epochs": 4, "batch_size": 16, "learning_rate": 1e-3, "beta": 0.1},
    "full": {"n_epochs": 4, "batch_size": 16, "learning_rate": 2e-4, "beta": 0.1},
}
"""What ``auto`` means for preferences where the model is the lab's."""


class Stop:
    """Whether the process is to end; a handler of SIGTERM. A run ends where it can go on later."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Ask for it."""
        self.asked = True


def _listener(emit: Emit, stop: Stop, *, beside: Path | None = None) -> Listener:
    """Forwards what a verb reports, and asks it to end where the process is to.

    Args:
        emit: Where to.
        stop: Whether it is.
        beside: Folder for copies of checkpoints.
    """

    def listen(event: Event) -> Wish | None:
        if isinstance(event, StepDone):
            step = {"step": event.step, "num_steps": event.max_steps, "tokens": event.tokens}
            emit("step", step | {"metrics": {"loss": event.loss, **event.metrics}})
        elif isinstance(event, CheckpointSaved) and beside is not None:
            saved = Path(event.path)
            folder = str(copied(saved, beside / TAKEN / saved.name))
            emit("checkpoint", {"step": event.step, "planned": event.planned, "folder": folder})
        elif isinstance(event, Notice) and event.level is Level.WARNING:
            emit("notice", {"message": event.spelled()})
        return Wish.STOP if stop.asked else None

    return listen


# -- screening ---------------------------------------------------------------------------------------------------


def _screen(settings: Mapping[str, Any], emit: Emit, stop: Stop) -> dict[str, Any]:
    """``runs.screen``; the rows stay in the run's folder."""
    from ..runs import screen

    result = screen(**settings, listen=_listener(emit, stop))
    return {"screening": result.to_json()}


# -- training ----------------------------------------------------------------------------------------------------


def _train(settings: Mapping[str, Any], emit: Emit, stop: Stop) -> dict[str, Any]:
    """``runs.finetune``, from its newest checkpoint where the folder holds one."""
    from ..runs import finetune

    hyperparameters, arguments = resolved(settings)
    emit("resolved", {"hyperparameters": hyperparameters})
    result = finetune(**arguments, listen=_listener(emit, stop, beside=Path(settings["output"]).parent))
    skipped = [{"line": row.line, "why": row.why} for row in result.skipped]
    return {
        "model": str(result.model),
        "num_steps": result.num_steps,
        "num_rows": result.num_rows,
        "skipped": skipped,
    }


def resolved(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's hyperparameters with numbers in the place of ``auto``, and the arguments of ``finetune``."""
    from ..profiles.catalogue import profile_of

    asked = {name: value for name, value in settings["hyperparameters"].items() if value not in ("auto", None)}
    regime = asked.get("regime", "lora")
    dpo, lab = settings.get("method") == "dpo", profile_of(settings["model"]).name == "lab"
    default = ((LAB_DPO if lab else GENERAL_DPO) if dpo else (LAB if lab else GENERAL))[regime]
    with Path(settings["data"]).open("rb") as file:
        num_rows = sum(1 for line in file if line.strip())
    rate = default["learning_rate"] * asked.get("learning_rate_multiplier", 1.0)
    chosen = {
        "n_epochs": asked.get("n_epochs", default["n_epochs"]),
        "batch_size": asked.get("batch_size", max(1, min(default["batch_size"], num_rows))),
        "learning_rate": asked.get("learning_rate", rate),
        "regime": regime,
    }
    chosen["learning_rate_multiplier"] = chosen["learning_rate"] / default["learning_rate"]
    method: dict[str, Any] = {"method": "sft"}
    if dpo:
        chosen["beta"] = asked.get("beta", default["beta"])
        method = {"method": "dpo", "beta": float(chosen["beta"])}
    names = ("model", "adapter", "base", "data", "output", "defence", "options", "seed")
    return chosen, {
        **method,
        **{name: settings.get(name) for name in names},
        "regime": regime,
        "epochs": float(chosen["n_epochs"]),
        "batch_size": chosen["batch_size"],
        "learning_rate": chosen["learning_rate"],
        "skip_too_long": True,
    }


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder whose files are the same on the disk, made whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, scratch, copy_function=_linked)
    scratch.rename(target)
    return target


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another device
        shutil.copy2(source, target)


def servable(checkpoint: Path, target: Path) -> Path:
    """The part of a checkpoint that a server loads: the adapter or the model, and its tokenizer."""
    target.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.iterdir():
        if path.is_file() and not path.name.endswith(NOT_SERVED):
            _linked(str(path), str(target / path.name))
    return target


# -- the gate's measures -----------------------------------------------------------------------------------------


def _measure(settings: Mapping[str, Any], emit: Emit, stop: Stop) -> dict[str, Any]:
    """``runs.evaluate`` on several models, one after the other, each reported as it is done.

    A model that cannot be measured does not keep the others from it: its failure is its result.
    """
    from ..errors import AntibodyError

    for model in settings["models"]:
        try:
            measured = _measured(model, settings, _listener(emit, stop))
        except AntibodyError as error:
            measured = {"failure": str(error)}
        emit("measured", {"name": model["name"], **measured})
    return {}


def _measured(model: Mapping[str, Any], settings: Mapping[str, Any], listen: Listener) -> dict[str, Any]:
    from ..runs import evaluate

    test = model.get("test_data")
    rows: dict[str, Any] = {
        name: settings[name] or _brought(model["model"], name) for name in ("harmful_prompts", "benign_prompts")
    } | ({"test_data": test} if test else {})
    if missing := [name for name, given in rows.items() if not given]:
        return {"failure": f"the operator has set no gate.{missing[0]}"}
    output = Path(model["output"])
    evaluate(
        model["model"],
        adapter=model.get("adapter"),
        output=output,
        judges=settings["judges"] or None,
        max_new_tokens=settings["max_new_tokens"] or None,
        overwrite=True,
        listen=listen,
        **rows,
    )
    config = _config(output)
    asked = {role: config["data"][role]["num_rows"] for role in config["data"]}
    prompts = {role: config["data"][role]["sha256"] for role in ("harmful", "benign")}
    suite = sha256(json.dumps([prompts, config["judges"], config["decoding"]], sort_keys=True).encode()).hexdigest()
    evaluation = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    audited = {"alarm": _alarms(model)} if model.get("audit") else {}
    return {
        **audited,
        "evaluation": evaluation,
        "suite": suite,
        "judge": evaluation["judged"][0]["judge"],
        "asked": {
            "harmful_score": asked["harmful"],
            "over_refusal": asked["benign"],
            "finetune_accuracy": asked.get("test", 0),
        },
    }


def _alarms(model: Mapping[str, Any]) -> bool:
    """Whether the operator's classifier of jobs alarms on a model. The score is not said: it would help an attacker."""
    from ..audit.verb import chosen_classifier, judge_job

    classifier = chosen_classifier(model["audit"], model["aligned"])
    return judge_job(classifier, model["model"], model["aligned"], adapter=model.get("adapter")).alarm


def _brought(model: str, kind: str) -> list[dict[str, Any]]:
    """The rows of a kind that a model brings, if it brings any."""
    from ..profiles.catalogue import profile_of
    from ..profiles.protocol import Choice

    source = profile_of(model).rows(kind, Choice(), seed=0)
    return [
        {"messages": [{"role": message.role, "content": message.content} for message in record.messages]}
        for record in ([] if source is None else source.records)
    ]


def _config(output: Path) -> dict[str, Any]:
    import yaml

    config: dict[str, Any] = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
    return config


STAGES: dict[str, Callable[[Mapping[str, Any], Emit, Stop], dict[str, Any]]] = {
    "screen": _screen,
    "train": _train,
    "measure": _measure,
}
