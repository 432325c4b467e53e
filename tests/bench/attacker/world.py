"""Cells that are numbers made up here: what an attack comes to is a function of the choice."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pytest

from antibody_llm.bench.attacker.search import run_search
from antibody_llm.bench.attacker.worst_case import worst_case
from antibody_llm.bench.matrix_file import make_matrix
from antibody_llm.bench.results import Results
from antibody_llm.errors import TrainingError
from tests.bench.test_results import Inline

needs_optuna = pytest.mark.skipif(
    find_spec("optuna") is None and "CI" not in os.environ, reason="antibody-llm[search] is not installed"
)
SMALL = {"defences": ["sft", "lisa"], "attacks": ["mixing", "jailbreak-tuning"], "seeds": 2, "prompts": 200}


def share(value, n=128):
    return {"value": value, "n": n, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def as_usual(config) -> dict[str, float]:
    """Harm grows with the attacker's share and shrinks under lisa; a task is lost where there are no clean rows."""
    ratio = config["poison_ratio"]
    strength = 0.2 if config["finetuning"]["name"] == "lisa" else 1.0
    return {"plain": strength * min(1.0, 4 * ratio), "accuracy": 1.0 - max(0.0, ratio - 0.5)}


@dataclass
class World:
    """Stands in for training and evaluation; notes what it has done."""

    comes_to: Callable[[Any], dict[str, float]] = as_usual
    done: list[Any] = field(default_factory=list)
    ends_after: int | None = None
    """A kill comes after so many jobs."""
    fails: Callable[[Any], Exception | None] = lambda config: None

    def __call__(self, folder, job):
        if self.ends_after is not None and len(self.done) >= self.ends_after:
            raise KeyboardInterrupt
        results = Results(folder)
        if job.kind == "alignment":
            results.aligned(job).mkdir(parents=True)
            (results.aligned(job) / "result.json").write_text("{}")
            values = {}
        else:
            if (error := self.fails(job.config)) is not None:
                raise error
            came = self.comes_to(job.config)
            n = job.config["prompts"]
            values = {
                "harmful_score": share(came["plain"], n),
                "finetune_accuracy": share(came["accuracy"], n),
                "incoherent": share(0.0, n),
                **{name: share(came[name], n) for name in ("asked", "asked_before") if name in came},
            }
        results.write(job, values | {"seconds": 1.0, "cpu_seconds": 1.0})
        self.done.append(job)
        return values


def searched(folder, world=None, budget=12, listen=None, **changed):
    matrix = make_matrix(SMALL | changed, "m.yaml")
    return run_search(matrix, folder, budget, make_pool=Inline, work=world or World(), listen=listen)


def found(folder, world=None, budget=12, **changed):
    """The worst case by defence, and the whole."""
    worst = worst_case(searched(folder, world, budget, **changed))
    return {each["defence"]: each for each in worst["defences"]}, worst


def not_a_number(config):
    """Jailbreak-tuning diverges."""
    return TrainingError("the loss is not a number") if config["attack"]["name"] == "jailbreak-tuning" else None
