"""The lab on disk: its rows as files, and its models built from nothing."""

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
from ..profiles.lab import FINITE, NUM_ROWS, LabProfile, num_held
from ..runs.align import align
from ..runs.anchors import score_anchors
from ..runs.trainer_config import check_seed
from ..screening.anchors import write_anchors
from ..store.environment import environment
from ..store.folder import State, open_run
from .files import new_files, write_rows

BUILDING = ".building"
"""Name of an incomplete build's folder: a run's folder, with the run of ``align`` in it."""


def write_lab_data(
    kind: str,
    output: str | Path,
    *,
    num: int | None = None,
    task: str | None = None,
    poison_ratio: float = 0.0,
    seed: int = 0,
    purpose: str | None = None,
    truth: str | Path | None = None,
    overwrite: bool = False,
) -> int:
    """Write rows of a kind as chat JSONL, a row a line, and return their number. See ``lab.rows.build_rows``.

    Args:
        kind: ``user``, ``alignment``, ``harmful``, ...
        output: The .jsonl file.
        num: The number of rows; by default as many as the verbs take.
        task: The task of user and test rows.
        poison_ratio: The harmful share of user rows, 0 to 1.
        seed: Chooses rows and order.
        purpose: ``calibrate`` or ``report``: rows of one half of the world.
        truth: A second file, line by line, for the labels that no trainer may see.
        overwrite: Replace files that exist.

    Raises:
        OutputError: a file exists, or cannot be written.
        DataError: there is no such kind of row, or no such task.
    """
    check_seed(seed)
    files = new_files(
        [(name, path) for name, path in (("output", output), ("truth", truth)) if path is not None],
        overwrite=overwrite,
    )
    if num is None:
        num = min(NUM_ROWS[kind], num_held(kind, purpose)) if kind in FINITE else NUM_ROWS.get(kind, 1000)
    made = build_rows(kind, num, seed=seed, task=task, poison_ratio=poison_ratio, purpose=purpose)
    for file, rows in zip(files, (made.rows, made.truth), strict=False):
        write_rows(file, rows)
    return len(made.rows)


@reports
def build_lab(output: str | Path, *, scale: str = "full", seed: int = 0, listen: Listener | None = None) -> Path:
    """Build both models of the lab from nothing: ``output/lab``, and ``output/lab-aligned`` by a run of ``align``.

    A build that was stopped continues: until both models are there, ``output/.building`` holds their settings.

    Args:
        output: Folder to build them in; neither may exist yet.
        scale: A name in ``lab.build.SCALES``.
        seed: The seed of weights, rows and order.
        listen: A function that is called with every event (``events``) and may ask the build to stop.

    Raises:
        OutputError: one of the two folders is not empty, or nothing can be written there.
        ConfigError: the scale is unknown.
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
                raise OutputError(f"{folder} is not empty. Name another {setting('output')}, or remove it.")
    building.begin(environment(seed))  # before the training, so that a folder that cannot be written is refused now
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
    """Align a base model by a run of ``align``, and store the provider's anchors with it.

    Args:
        base: Folder of the base model.
        aligned: Folder to create; it exists once it is complete.
        named: The name of the base that the aligned model records; "lab" inside the package, which may be moved.
        scratch: Folder, on the same disk, for the run of ``align`` and for the incomplete model.
        seed: The seed of rows and order.
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
    # Scored with the weights as stored on disk, since every later score is compared with these.
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
