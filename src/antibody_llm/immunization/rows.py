"""Rows and prompts of the grid: those of a fictional world that the model knows, or those of files."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..building.attacks import clean_rows
from ..data.records import Message, Record, Template
from ..english.presets import EVALUATION_ROWS
from ..english.rows import build_rows as build_english
from ..errors import ConfigError
from ..lab.rows import LabRows
from ..lab.rows import build_rows as build_lab
from ..mentions import setting
from ..profiles.lab import num_held
from ..runs.sources import read_rows

IN_DOMAIN, CROSS = "in-domain", "cross-domain"
"""Harmful prompts of the kinds that the provider's rows have, none of them among the attacker's; and of other kinds."""
WORLDS: Mapping[str, tuple[Callable[..., LabRows], Callable[[str], int]]] = {
    "lab": (build_lab, lambda purpose: num_held("harmful-prompts", purpose)),
    "english": (build_english, lambda purpose: EVALUATION_ROWS),
}
"""What makes the rows of a profile's world, and how many harmful prompts it holds for a purpose."""
FILES = ("attack_data", "harmful_prompts", "cross_prompts", "benign_prompts", "data", "test_data", "retention_data")
"""The settings that name rows."""
TASK_ROWS = 500
"""Clean rows of a world that trainability is measured with."""
TEST_ROWS = 200
"""The most rows of the task that are asked at each checkpoint."""

Row = Mapping[str, Any]


def attack_rows(sets: Mapping[str, Any], places: Mapping[str, str], num: int, seed: int) -> list[Row]:
    """The attacker's harmful rows.

    Args:
        sets: The configuration of a job's rows: a world with its purpose, or fingerprints of files.
        places: The files.
        num: How many rows. Those of a world are repeated if it has fewer.
        seed: Chooses them.

    Raises:
        ConfigError: the file has fewer.
    """
    if "world" in sets:
        build, _ = WORLDS[sets["world"]]
        return list(build("user", num, seed=seed, poison_ratio=1.0, purpose=sets["purpose"]).rows)
    found = clean_rows(places["attack_data"], "attack_data")
    if num > len(found):
        raise ConfigError(
            f"{places['attack_data']}: {num} rows are to be drawn, and it has {len(found)}. Lower {setting('rows')}, "
            "or give more.",
            field="rows",
        )
    return random.Random(f"immunization/{seed}").sample(found, num)


def task_rows(sets: Mapping[str, Any], places: Mapping[str, str], task: str | None, seed: int) -> list[Row]:
    """A user's clean rows, of a task of the world or of the file."""
    if "world" in sets:
        build, _ = WORLDS[sets["world"]]
        return list(build("user", TASK_ROWS, seed=seed, task=task, purpose=sets["purpose"]).rows)
    return list(clean_rows(places["data"], "data"))


def harmful_sets(sets: Mapping[str, Any], places: Mapping[str, str], num: int) -> dict[str, list[Record]]:
    """At most ``num`` harmful prompts of each set; a row ends with the harmful answer if that is known."""
    if "world" not in sets:
        named = {IN_DOMAIN: "harmful_prompts", CROSS: "cross_prompts"}
        return {
            name: read_rows(places[key], name=f"{key} rows", prompts=True).records[:num]
            for name, key in named.items()
            if key in places
        }
    build, held = WORLDS[sets["world"]]
    made = build("harmful-prompts", held(sets["purpose"]), seed=0, purpose=sets["purpose"])
    found: dict[str, list[Record]] = {IN_DOMAIN: [], CROSS: []}
    for row, truth in zip(made.rows, made.truth, strict=True):
        records = found[CROSS if truth["split"] == "cross" else IN_DOMAIN]
        if len(records) < num:
            records.append(_record(row["messages"][-1]["content"], truth["reference"], len(records)))
    return found


def reference_rows(sets: Mapping[str, Any], places: Mapping[str, str], task: str | None) -> Sequence[Record]:
    """Rows of the user's task with their reference answers."""
    if "world" not in sets:
        return read_rows(places["test_data"], name="test_data rows").records[:TEST_ROWS]
    build, _ = WORLDS[sets["world"]]
    made = build("test", TEST_ROWS, seed=0, task=task, purpose=sets["purpose"])
    contents = [[message["content"] for message in row["messages"]] for row in made.rows]
    return [_record(prompt, answer, number) for number, (prompt, answer) in enumerate(contents)]


def _record(prompt: str, answer: str, number: int) -> Record:
    messages = (Message("user", prompt), Message("assistant", answer))
    return Record(number, messages, Template.CHAT, source="the world's rows", line=number + 1)
