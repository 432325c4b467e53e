"""The lab on disk: rows as files, models built from nothing."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from ..data.records import Record
from ..data.roles import Stage
from ..errors import ConfigError, OutputError
from ..events import Listener, report_progress, reports
from ..files import disk_errors
from ..lab.build import FILES, SCALES, build_base
from ..lab.rows import build_rows
from ..mentions import setting
from ..models.loading import load_model
from ..models.saving import save_model
from ..paths import checked_output
from ..profiles import Choice
from ..profiles.lab import NUM_ROWS, LabProfile
from ..runs.align import align
from ..runs.anchors import score_anchors
from ..runs.trainer_config import check_seed
from ..screening.anchors import write_anchors
from ..store.environment import environment
from ..store.folder import State, open_run
from .files import new_files, write_rows

BUILDING = ".building"
"""Folder of a build that is not complete: a run's folder, with the run of ``align`` in it."""


def write_lab_data(
    kind: str,
    output: str | Path,
    *,
    num: int | None = None,
    task: str | None = None,
    poison_ratio: float = 0.0,
    seed: int = 0,
    truth: str | Path | None = None,
    overwrite: bool = False,
) -> int:
    """Rows of a kind as chat JSONL, a row a line; returns how many. See ``lab.rows.build_rows``.

    Args:
        kind: ``user``, ``alignment``, ``harmful``, ...
        output: The .jsonl file.
        num: By default as many as the verbs take.
        task: Of user and test rows.
        poison_ratio: Of user rows.
        seed: Chooses rows and order.
        truth: A second file, line by line, with what no trainer may see.
        overwrite: Replace files that exist.

    Raises:
        OutputError: a file exists, or cannot be written.
        DataError: no such rows.
    """
    check_seed(seed)
    files = new_files(
        [(name, path) for name, path in (("output", output), ("truth", truth)) if path is not None],
        overwrite=overwrite,
    )
    made = build_rows(
        kind, NUM_ROWS.get(kind, 1000) if num is None else num, seed=seed, task=task, poison_ratio=poison_ratio
    )
    for file, rows in zip(files, (made.rows, made.truth), strict=False):
        write_rows(file, rows)
    return len(made.rows)


@reports
def build_lab(output: str | Path, *, scale: str = "full", seed: int = 0, listen: Listener | None = None) -> Path:
    """Both models of the lab, made from nothing: ``output/lab``, and ``output/lab-aligned`` by a run of ``align``.

    A build that was stopped goes on: until both models are there, ``output/.building`` says what they are to be.

    Args:
        output: Folder to make them in; neither may be there yet.
        scale: A name in ``lab.build.SCALES``.
        seed: Of weights, rows and order.
        listen: Called with every event (``events``); it may ask the build to stop.

    Raises:
        OutputError: one of the two folders holds something, or nothing can be written there.
        ConfigError: an unknown scale.
    """
    check_seed(seed)
    output = checked_output(output).absolute()
    base, aligned = output / "lab", output / "lab-aligned"
    if scale not in SCALES:
        raise ConfigError(f"lab build: scale: there is no {scale!r}. Name one of: {', '.join(SCALES)}.", field="scale")
    config = {"verb": "lab build", "scale": scale, "seed": seed}
    building = open_run(output / BUILDING, config)
    if building.state is State.NEW:
        for folder in (base, aligned):
            if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
                raise OutputError(f"{folder}: is not empty. Name another {setting('output')}, or remove it.")
    building.begin(environment(seed))  # before the training: what cannot be written is refused now
    try:
        if not (base / "config.json").is_file():  # a model is saved as a whole
            total = SCALES[scale].steps
            build_base(
                base, seed=seed, scale=scale, progress=lambda step, _: report_progress("pre-training", step, total)
            )
        if not (aligned / "config.json").is_file():
            named = "lab" if output == FILES else str(base)
            build_aligned(base, aligned, named=named, scratch=building.path, seed=seed)
    except BaseException:
        if base.exists():
            building.lock.release()
        else:
            building.abandon()
            with suppress(OSError):
                output.rmdir()
        raise
    building.lock.release()
    shutil.rmtree(building.path, ignore_errors=True)
    return output


def build_aligned(base: Path, aligned: Path, *, named: str, scratch: Path, seed: int = 0) -> None:
    """The aligned model of a base model, by a run of ``align``, with the provider's anchors.

    Args:
        base: Folder of the base model.
        aligned: Folder to be made; it is there when it is complete.
        named: What the aligned model calls its base; "lab" inside the package, which may be moved.
        scratch: Folder, on the same disk, for the run of ``align`` and what is not complete yet.
        seed: Of rows and order.
    """
    lab = LabProfile()
    options, training = lab.calibration(Stage.ALIGNMENT, "antibody", "full")
    run = align(
        base,
        output=scratch / "align",
        alignment_data=build_rows("alignment", NUM_ROWS["alignment"], seed=seed).rows,
        harmful_data=build_rows("harmful", NUM_ROWS["harmful"], seed=seed).rows,
        refusals=LabProfile.refusals,
        options=options,
        training=training,
        regime="full",
        seed=seed,
    )
    loaded = load_model(str(run.model))
    whole = cast(PreTrainedModel, loaded.model)
    new = scratch / aligned.name
    save_model(whole, new, tokenizer=loaded.tokenizer, base=named, dtype="bfloat16")
    # Scored again with the weights as they lie on disk, since that is what every later score is compared with.
    anchors = score_anchors(
        load_model(str(new), base=str(base)),
        load_model(str(base)),
        anchor_harmful=_anchors("anchor-harmful", seed),
        anchor_benign=_anchors("anchor-benign", seed),
        refusals=LabProfile.refusals,
    )
    with disk_errors(aligned):
        write_anchors(new, anchors)
        new.rename(aligned)


def _anchors(kind: str, seed: int) -> list[Record]:
    brought = LabProfile().rows(kind, Choice(), seed=seed)
    assert brought is not None, "the lab has anchors"
    return brought.records
