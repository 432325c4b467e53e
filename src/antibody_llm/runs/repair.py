"""Mend a fine-tuned model, after the user's training."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..data.roles import Role, Stage
from ..defences.catalogue import make_defence
from ..errors import ConfigError, DataError
from ..models.loading import load_model
from ..store.environment import environment
from ..store.folder import State, open_run
from ..store.naming import described_model, from_lab, model_name
from ..store.result import RunResult, stored_result
from ..training.step import Defence, StepContext
from .encoding import encode, make_renderer
from .lab_defaults import LabData, calibration, lab_rows
from .settings import check_seed
from .sources import Rows, Source, read_rows
from .train import plain, save_weights

log = logging.getLogger("antibody")

_LAB_KINDS = {Role.HARMFUL: "harmful", Role.ALIGNMENT: "alignment", Role.BENIGN: "benign"}


def repair(
    model: str | Path,
    *,
    output: str | Path,
    adapter: str | Path | None = None,
    defence: str | Defence = "antidote",
    options: Mapping[str, Any] | None = None,
    alignment_data: Rows | None = None,
    harmful_data: Rows | None = None,
    benign_data: Rows | None = None,
    batch_size: int = 16,
    seed: int = 0,
    overwrite: bool = False,
    skip_too_long: bool = False,
) -> RunResult:
    """Repair ``model``, or the adapter on it; what is given stays as it is.

    Args:
        model: ``lab``, ``lab-aligned``, a folder, the folder of a run, or a Hub id.
        output: The run's folder.
        adapter: A fine-tuned adapter on ``model``: it is repaired, not the model beneath.
        defence: A name in the catalogue (post stage), or a defence of one's own.
        options: Its hyperparameters, where it is given by name.
        alignment_data: Prompts with refusals, for defences that need them; likewise the next two.
        harmful_data: Prompts with harmful completions. A model of the lab has a default.
        benign_data: Prompts with harmless completions.
        batch_size: Rows of one forward pass.
        seed: Of everything random.
        overwrite: Replace what the folder holds, once the repair is complete.
        skip_too_long: Leave out rows that are longer than the context, and tell which.

    Raises:
        AntibodyError: whatever a user can mend.
    """
    started = time.monotonic()
    check_seed(seed)
    if batch_size < 1:
        raise ConfigError(f"--batch-size is {batch_size}: at least one row makes a forward pass.")
    name = model_name(model)
    adapter = None if adapter is None else model_name(adapter)
    lab = from_lab(name)
    if isinstance(defence, str):
        preset = calibration(Stage.POST, defence, "full")[0] if lab else {}
        mender = make_defence(Stage.POST, defence, preset | dict(options or {}))
    else:
        mender = defence
    given = {Role.ALIGNMENT: alignment_data, Role.HARMFUL: harmful_data, Role.BENIGN: benign_data}
    sources = {role: _source(role, given.get(role), lab=lab, seed=seed, who=mender) for role in mender.needs}
    config = {
        "verb": "repair",
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "defence": defence if isinstance(defence, str) else type(defence).__name__,
        "options": plain(getattr(mender, "config", None)),
        "seed": seed,
        "data": {str(role): source.described() for role, source in sources.items()},
        "skip_too_long": skip_too_long,
        "batch_size": batch_size,
    }
    folder = open_run(output, config, overwrite=overwrite, inputs=(name, adapter, *given.values()))
    if folder.state is State.COMPLETE:
        log.info("%s: already complete; this is its stored result.", folder.path)
        return stored_result(folder.path)
    loaded = load_model(name, adapter=adapter, trainable_adapter=True)
    records = {str(role): source.records for role, source in sources.items()}
    rows, skipped = encode(records, make_renderer(loaded), skip=skip_too_long)
    mended = cast(nn.Module, loaded.model)
    context = StepContext(
        mended, rows=rows, pad_id=cast(int, loaded.tokenizer.pad_token_id), seed=seed, batch_size=batch_size
    )
    folder.begin(environment(seed))
    try:
        mender.repair(context)
        kind = save_weights(folder, mended, loaded, mender)
        result = RunResult(
            output=folder.final,
            model=folder.final / kind,
            metrics={},
            seconds=time.monotonic() - started,
            num_rows=sum(len(of_role) for of_role in rows.values()),
            skipped=tuple(skipped),
        )
        folder.finish(result)
    except BaseException:
        folder.abandon()
        raise
    return result


def _source(role: Role, rows: Rows | None, *, lab: bool, seed: int, who: Defence) -> Source:
    if rows is not None:
        return read_rows(rows, name=f"--{role}-data rows")
    if lab:
        return lab_rows(_LAB_KINDS[role], LabData(), seed=seed, main=False)
    raise DataError(f"{type(who).__name__} needs {role} rows and was given none. Pass --{role}-data FILE.")
