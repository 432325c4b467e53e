"""Repair a fine-tuned model, after the user's training."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from peft import PeftModel
from torch import nn

from ..data.roles import Role, Stage, setting_of
from ..data.source import Source
from ..defences.catalogue import make_repair
from ..errors import DataError, ModelError
from ..events import inform, warn, warned
from ..likelihood.reader import ModelReader
from ..mentions import setting
from ..models.adapters import merged
from ..models.loading import LoadedModel, load_model
from ..profiles import Choice, Profile, profile_of
from ..settings import RepairSettings, Rows, plain, rows_of, written_out
from ..store.environment import environment
from ..store.folder import State, open_run
from ..store.naming import aligned_of, base_of, described_model, model_name
from ..store.result import RunResult, Skipped, stored_result
from ..training.defence import Repair
from ..training.preparation import TrainingData
from .encoding import encode, make_renderer
from .resources import earlier_model
from .saving import save_weights
from .sources import read_rows
from .trainer_config import check_seed
from .verb import verb


@verb(RepairSettings)
def repair(settings: RepairSettings) -> RunResult:
    """Repair a fine-tuned model, or the adapter on it; the given weights are not changed.

    Args:
        settings: What to repair, with what, and how.

    Raises:
        AntibodyError: whatever a user can fix.
    """
    started = time.monotonic()
    check_seed(settings.seed)
    name = model_name(settings.model)
    adapter = None if settings.adapter is None else model_name(settings.adapter)
    profile = profile_of(name)
    method = _method(settings, profile)
    given = rows_of(settings)
    sources = {
        role: _source(role, given.get(role), profile=profile, seed=settings.seed, who=method) for role in method.reads
    }
    config: dict[str, Any] = {
        "verb": "repair",
        "model": described_model(name),
        "adapter": None if adapter is None else described_model(adapter, on=name),
        "defence": settings.defence if isinstance(settings.defence, str) else type(method).__name__,
        "options": plain(getattr(method, "config", None)),
        "seed": settings.seed,
        "data": {str(role): source.described() for role, source in sources.items()},
        "skip_too_long": settings.skip_too_long,
        "batch_size": settings.batch_size,
    }
    earlier = _earlier(settings, method, name, adapter)
    config |= {key: described_model(model) for key, model in earlier.items()}
    config = written_out(settings, config)
    inputs = (name, adapter, *earlier.values(), *given.values())
    folder = open_run(settings.output, config, overwrite=settings.overwrite, inputs=inputs)
    if folder.state is State.COMPLETE:
        inform(f"{folder.path}: already complete; this is its stored result.")
        return stored_result(folder.path)
    loaded = _loaded(method, name, adapter)
    reader, skipped = _reader(settings, method, loaded, sources, earlier)
    folder.begin(environment(settings.seed))
    try:
        method.repair(reader, seed=settings.seed)
        kind = save_weights(folder, reader.model, loaded, method)
        result = RunResult(
            output=folder.final,
            model=folder.final / kind,
            metrics={},
            seconds=time.monotonic() - started,
            num_rows=sum(len(of_role) for of_role in reader.rows.values()),
            skipped=tuple(skipped),
            warnings=warned(),
        )
        folder.finish(result)
    except BaseException:
        folder.abandon()
        raise
    return result


def _method(settings: RepairSettings, profile: Profile) -> Repair:
    """The repair that is named, with the profile's calibration beneath, or the object that is given."""
    if not isinstance(settings.defence, str):
        return settings.defence
    preset, _ = profile.calibration(Stage.POST, settings.defence, "full")
    return make_repair(settings.defence, preset | dict(settings.options or {}))


def _loaded(method: Repair, name: str, adapter: str | None) -> LoadedModel:
    """The fine-tuned model, with the adapter merged into it where the defence changes more than that."""
    loaded = load_model(name, adapter=adapter, dtype=_dtype(method), trainable_adapter=True)
    if method.merges and isinstance(loaded.model, PeftModel):
        return replace(loaded, model=merged(loaded.model), adapter=None)
    return loaded


def _dtype(method: Repair) -> str:
    return "float32" if method.small_steps else "auto"


def _reader(
    settings: RepairSettings,
    method: Repair,
    loaded: LoadedModel,
    sources: Mapping[Role, Source],
    earlier: Mapping[str, str],
) -> tuple[ModelReader, list[Skipped]]:
    """The reader of the fine-tuned model, its rows and the models before it; and the rows that are left out."""
    records = {str(role): source.records for role, source in sources.items()}
    data = method.prepare(TrainingData(records, loaded.tokenizer, settings.seed))
    rows, skipped = encode(data.records, make_renderer(loaded), skip=settings.skip_too_long)
    models = {key: earlier_model(loaded, name, key, _dtype(method)) for key, name in earlier.items()}
    reader = ModelReader(
        cast(nn.Module, loaded.model),
        rows=rows,
        pad_id=cast(int, loaded.tokenizer.pad_token_id),
        batch_size=settings.batch_size,
        base=models.get("base"),
        aligned=models.get("aligned"),
    )
    return reader, skipped


def _earlier(settings: RepairSettings, method: Repair, name: str, adapter: str | None) -> dict[str, str]:
    """The models that the defence compares with, by the setting that names each.

    Raises:
        ModelError: one of them is not known.
    """
    earlier: dict[str, str] = {}
    if method.needs_aligned or method.needs_base:
        aligned = model_name(settings.aligned) if settings.aligned is not None else aligned_of(name, adapter)
        base = None if settings.base is None else model_name(settings.base)
        if method.needs_aligned:
            if aligned is None:
                raise ModelError(
                    f"{adapter or name} does not say which model its fine-tuning started from, and this defence "
                    f"compares the two. Name it: {setting('aligned')}."
                )
            earlier["aligned"] = aligned
        if method.needs_base:
            base = base or (None if aligned is None else base_of(aligned, None))
            if base is None:
                raise ModelError(
                    f"{aligned or adapter or name} does not say which model it was before its alignment, and this "
                    f"defence compares the two. Name it: {setting('base')}."
                )
            earlier["base"] = base
    for key in ("aligned", "base"):
        if getattr(settings, key) is not None and key not in earlier:
            warn(f"{setting(key)} is not used: {type(method).__name__} does not compare with that model.")
    return earlier


def _source(role: Role, rows: Rows | None, *, profile: Profile, seed: int, who: Repair) -> Source:
    if rows is not None:
        return read_rows(rows, name=f"{setting_of(role)} rows")
    if brought := profile.rows(role, Choice(), seed=seed):
        return brought
    raise DataError(f"{type(who).__name__} needs {role} rows and was given none. Give {setting(setting_of(role))}.")
