"""An attack's rows as files: clean and harmful rows are read; the upload, its truth and the questions are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..attacks.asking import Asking, Row
from ..attacks.attack import Access, Crafted, Means, Suspicion
from ..attacks.catalogue import craft, find_attack
from ..attacks.kit import Exchange, Kit, lab_kit, lab_questions, rows_kit
from ..attacks.own_copy import OwnCopy
from ..data.convert import canonical
from ..data.files import BadRow
from ..data.formats import RowReader, load_prompts, raw_rows
from ..data.records import Record
from ..errors import ConfigError, DataError, ModelError
from ..lab.rows import record
from ..mentions import setting
from ..models.loading import load_model, resolve
from ..paths import as_file, checked_path
from ..runs.encoding import encode, make_renderer
from ..runs.settings import check_seed
from ..runs.sources import read_refusals
from ..screening.anchors import read_anchors
from ..screening.evidence import EvidenceKind, collect
from ..training.step import StepContext
from .files import new_files, write_rows

ALL_PROMPTS = 512
"""Held-out harmful prompts of the lab: all that it holds."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    attack: str
    outputs: list[Path]
    num_rows: int
    num_poison: int
    asking: dict[str, Any]
    others: dict[str, str] = field(default_factory=dict)
    """Files beside the rows: truth, asked."""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "attack": self.attack,
            "outputs": [str(file) for file in self.outputs],
            "num_rows": self.num_rows,
            "num_poison": self.num_poison,
            "asking": self.asking,
            **self.others,
        }


def write_attack(
    name: str,
    output: str | Path,
    *,
    data: str | Path,
    num: int | None = None,
    poison_ratio: float | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    harmful_data: str | Path | None = None,
    model: str | None = None,
    truth: str | Path | None = None,
    asked: str | Path | None = None,
    prompts: str | Path | None = None,
    overwrite: bool = False,
) -> Written:
    """What an attack uploads, as chat JSON Lines. An attack of several jobs writes NAME-1.jsonl, NAME-2.jsonl, ...

    Args:
        name: In the catalogue.
        output: The .jsonl file.
        data: A user's clean rows: a file, a data set's folder or a Hub id.
        num: Rows over all jobs; by default as many as the clean rows.
        poison_ratio: Share of the attacker's rows; by default the attack's own.
        options: The attack's knobs.
        seed: Of every draw.
        harmful_data: Harmful rows to attack with; by default those of the lab.
        model: For attacks that need one: the attacker's copy, or the model whose screening they are shown.
        truth: A file for what no trainer may see, line by line; of several jobs one after the other.
        asked: A file for questions in the attack's own form.
        prompts: The questions; by default the lab's held-out ones.
        overwrite: Replace files that exist.

    Raises:
        AntibodyError: whatever a user can fix; nothing has been written then.
    """
    attack = find_attack(name)
    check_seed(seed)
    if prompts is not None and asked is None:
        raise ConfigError(f"{setting('prompts')} are asked in the attack's form. Give {setting('asked')} to write to.")
    beside = [(flag, path) for flag, path in (("--truth", truth), ("--asked", asked)) if path is not None]
    inputs = (data, harmful_data, prompts)
    new_files([("--output", output), *beside], overwrite=overwrite, inputs=inputs)
    rows = clean_rows(data)
    kit = lab_kit() if harmful_data is None else rows_kit(exchanges(harmful_data), _talk(rows), read_refusals(None))
    means = Means(
        clean=rows,
        kit=kit,
        num=len(rows) if num is None else num,
        poison_ratio=attack.poison_ratio if poison_ratio is None else poison_ratio,
        seed=seed,
        copy=OwnCopy(model) if model is not None and Access.COPY in attack.needs else None,
        suspicion=screening_of(model) if model is not None and Access.SCREENING in attack.needs else None,
    )
    crafted = craft(name, means, options)
    named = [("--output", file) for file in _job_files(Path(output), crafted)]
    outputs = new_files([*named, *beside], overwrite=overwrite, inputs=inputs)[: len(named)]
    for file, job in zip(outputs, crafted.jobs, strict=True):
        write_rows(file, job.rows)
    if truth is not None:
        write_rows(Path(truth), [one for job in crafted.jobs for one in job.truth])
    if asked is not None:
        write_rows(Path(asked), asked_rows(crafted.asking, kit, prompts))
    others = {flag.removeprefix("--"): str(path) for flag, path in beside}
    return Written(name, outputs, crafted.num_rows, crafted.num_poison, crafted.asking.described(), others)


def clean_rows(data: str | Path, flag: str = "--data") -> list[Row]:
    """Training rows of any accepted format, as canonical chat rows.

    Args:
        data: A file, a data set's folder or a Hub id.
        flag: What an error calls it.

    Raises:
        DataError: a row cannot be used.
    """
    with as_file(checked_path(data, flag)) as file:
        reader, rows = RowReader(str(data), trainable=True), []
        for row_id, (line, row) in enumerate(raw_rows(str(file), "train")):
            try:
                found = reader.read(row_id, line, row)
            except BadRow as problem:
                reader.refuse(line, problem)
                continue
            assert reader.first is not None
            rows.append(canonical(found, row, form=reader.first[1]).row)
        reader.finish()
    return rows


def exchanges(data: str | Path) -> list[Exchange]:
    """The last question and answer of every row that has both as text."""
    return _talk(clean_rows(data, "--harmful-data"))


def _talk(rows: Sequence[Row]) -> list[Exchange]:
    found = []
    for row in rows:
        said = {message["role"]: message["content"] for message in row["messages"]}
        if said.get("user") and said.get("assistant"):
            found.append(Exchange(said["user"], said["assistant"]))
    return found


def asked_rows(asking: Asking, kit: Kit, prompts: str | Path | None) -> list[Row]:
    """Questions in the attack's own form: the lab's held-out ones, or those of a file.

    Raises:
        DataError: the file's cannot be used, or it has none.
    """
    if prompts is None:
        questions = lab_questions(ALL_PROMPTS)
    else:
        records: list[Record] = load_prompts(checked_path(prompts, "--prompts"))
        questions = [next(m.content for m in reversed(found.messages) if m.role == "user") for found in records]
    if not questions:
        raise DataError(f"{prompts}: there is no prompt. Give at least one.")
    return [asking.row(question, number) for number, question in enumerate(questions)]


def screening_of(model: str) -> Suspicion:
    """What the screening of an aligned model makes of rows: the shift of its features.

    Raises:
        ModelError: the model brings no anchors, or its base is not known.
    """
    aligned = load_model(model)
    anchors = read_anchors(Path(resolve(model)))
    if anchors is None or aligned.base is None:
        lacks = "no anchors" if anchors is None else "no base"
        raise ModelError(
            f"{model}: {lacks}, so that its screening cannot be attacked. Name an aligned model with both."
        )
    renderer = make_renderer(aligned)
    context = StepContext(
        cast(nn.Module, aligned.model),
        pad_id=cast(int, aligned.tokenizer.pad_token_id),
        batch_size=64,
        base=None if aligned.adapter_off_is_base else cast(nn.Module, load_model(aligned.base).model),
    )

    def suspicion(rows: Sequence[Row]) -> Sequence[float]:
        encoded, _ = encode({"user": [record(row, i) for i, row in enumerate(rows)]}, renderer, skip=False)
        measure = EvidenceKind.FEATURE_SHIFT
        found = collect(context, encoded["user"], [measure], probe=anchors.probe).of(measure)
        return cast("list[float]", found.tolist())

    return suspicion


def _job_files(output: Path, crafted: Crafted) -> list[Path]:
    if len(crafted.jobs) == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, len(crafted.jobs) + 1)]
