"""An attack's rows as files: clean and harmful rows are read; the upload, its truth and the questions are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attacks import mixing
from ..attacks.asking import Asking, Row
from ..attacks.attack import Access, Crafted, Means
from ..attacks.catalogue import craft, find_attack
from ..attacks.kit import Exchange, Kit, lab_kit, lab_questions, rows_kit
from ..attacks.own_copy import OwnCopy
from ..attacks.provider import screening_of
from ..data.convert import canonical
from ..data.formats import RowReader, load_prompts
from ..data.records import Record
from ..errors import ConfigError, DataError
from ..mentions import setting
from ..paths import checked_path
from ..runs.sources import opened, read_refusals
from ..runs.trainer_config import check_seed
from .files import new_files, write_rows

ALL_PROMPTS = 512
"""Held-out harmful prompts of the lab: all that it holds."""


@dataclass(frozen=True, kw_only=True)
class AttackFiles:
    """The files of an attack to be written, and those that are read for it."""

    name: str
    """The attack's name in the catalogue."""
    data: str | Path
    """A user's clean rows: a file, a data set's folder or a Hub id."""
    output: str | Path
    """The .jsonl file. An attack of several jobs writes NAME-1.jsonl, NAME-2.jsonl, ..."""
    num: int | None = None
    """Rows over all jobs; by default as many as the clean rows."""
    poison_ratio: float | None = None
    """Share of the attacker's rows; by default the attack's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The attack's knobs."""
    seed: int = 0
    """Seed of every draw."""
    harmful_data: str | Path | None = None
    """Harmful rows to attack with; by default those of the lab."""
    model: str | None = None
    """Model of attacks that need one: the attacker's copy, or the model whose screening they are shown."""
    truth: str | Path | None = None
    """A file for the labels that no trainer may see, line by line, of several jobs one after the other."""
    asked: str | Path | None = None
    """A file for questions in the attack's own form."""
    prompts: str | Path | None = None
    """The questions; by default the lab's held-out ones."""
    parity: bool = False
    """Whether mixing takes the rows that Booster's release takes, in its numbers."""
    overwrite: bool = False
    """Whether files that exist are replaced."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    attack: str
    outputs: list[Path]
    num_rows: int
    num_poison: int
    asking: dict[str, Any]
    others: dict[str, str]
    """Files beside the rows: truth, asked."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a program reads."""
        return {
            "attack": self.attack,
            "outputs": [str(file) for file in self.outputs],
            "num_rows": self.num_rows,
            "num_poison": self.num_poison,
            "asking": self.asking,
            **self.others,
        }


def write_attack(files: AttackFiles) -> Written:
    """Write what an attack uploads, as chat JSON Lines.

    Raises:
        AntibodyError: a mistake that the user can fix; nothing has been written then.
    """
    needs = find_attack(files.name).needs
    check_seed(files.seed)
    if files.model is not None and not {Access.COPY, Access.SCREENING} & set(needs):
        raise ConfigError(f"{setting('model')} has no effect on {files.name}, which needs none. Leave it out.")
    if files.prompts is not None and files.asked is None:
        raise ConfigError(f"{setting('prompts')} are asked in the attack's form. Give {setting('asked')} to write to.")
    if files.parity and files.name != mixing.ATTACK.name:
        raise ConfigError(f"{setting('parity')} is of {mixing.ATTACK.name} alone: no release has {files.name}.")
    beside = [(name, path) for name, path in (("truth", files.truth), ("asked", files.asked)) if path is not None]
    inputs = (files.data, files.harmful_data, files.prompts)
    new_files([("output", files.output), *beside], overwrite=files.overwrite, inputs=inputs)
    means = means_of(files)
    crafted = mixing.published_mix(means) if files.parity else craft(files.name, means, files.options)
    named = [("output", file) for file in _job_files(Path(files.output), crafted)]
    checked = new_files([*named, *beside], overwrite=files.overwrite, inputs=inputs)
    contents = [job.rows for job in crafted.jobs]
    if files.truth is not None:
        contents.append([truth for job in crafted.jobs for truth in job.truth])
    if files.asked is not None:
        contents.append(asked_rows(crafted.asking, files.prompts))
    for file, rows in zip(checked, contents, strict=True):
        write_rows(file, rows)
    others = {name: str(path) for name, path in beside}
    outputs = checked[: len(named)]
    return Written(files.name, outputs, crafted.num_rows, crafted.num_poison, crafted.asking.described(), others)


def means_of(files: AttackFiles) -> Means:
    """The means of the attacker."""
    attack, rows = find_attack(files.name), clean_rows(files.data)
    kit: Kit = lab_kit()
    if files.harmful_data is not None:
        harmful = exchanges(clean_rows(files.harmful_data, "harmful_data"))
        kit = rows_kit(harmful, exchanges(rows), read_refusals(None))
    return Means(
        clean=rows,
        kit=kit,
        num=len(rows) if files.num is None else files.num,
        poison_ratio=attack.poison_ratio if files.poison_ratio is None else files.poison_ratio,
        seed=files.seed,
        copy=OwnCopy(files.model) if files.model is not None and Access.COPY in attack.needs else None,
        suspicion=screening_of(files.model) if files.model is not None and Access.SCREENING in attack.needs else None,
    )


def clean_rows(data: str | Path, name: str = "data") -> list[Row]:
    """Training rows of any accepted format, as canonical chat rows.

    Args:
        data: A file, a data set's folder or a Hub id.
        name: The setting that it is given for.

    Raises:
        DataError: a row cannot be used.
    """
    with opened(data, name=setting(name)) as given:
        reader, rows = RowReader(given.name, trainable=True), []
        for row in reader.records(given):
            assert reader.first is not None
            assert row.record is not None
            rows.append(canonical(row.record, row.raw, form=reader.first[1]).row)
    return rows


def exchanges(rows: Sequence[Row]) -> list[Exchange]:
    """The last question and answer of every row that has both as text."""
    found = []
    for row in rows:
        said = {message["role"]: message["content"] for message in row["messages"]}
        if said.get("user") and said.get("assistant"):
            found.append(Exchange(said["user"], said["assistant"]))
    return found


def asked_rows(asking: Asking, prompts: str | Path | None) -> list[Row]:
    """Questions in the attack's own form: the lab's held-out ones, or those of a file.

    Raises:
        DataError: the file's questions cannot be used, or it has none.
    """
    if prompts is None:
        questions = lab_questions(ALL_PROMPTS)
    else:
        records: list[Record] = load_prompts(checked_path(prompts, setting("prompts")))
        questions = [next(m.content for m in reversed(found.messages) if m.role == "user") for found in records]
    if not questions:
        raise DataError(f"{prompts}: there is no prompt. Give at least one.")
    return [asking.row(question, number) for number, question in enumerate(questions)]


def _job_files(output: Path, crafted: Crafted) -> list[Path]:
    if len(crafted.jobs) == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(crafted.jobs) + 1)]
