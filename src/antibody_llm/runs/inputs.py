"""What align and finetune are given, checked before any model is loaded."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.roles import ANCHOR_ROLES, MAIN_ROLE, Role, Stage, setting_of
from ..data.source import Source
from ..defences.catalogue import make_defence, make_pair_defence
from ..errors import ConfigError, DataError
from ..events import warn
from ..mentions import setting
from ..models.adapters import PAPER_TARGETS
from ..models.names import is_adapter
from ..parsing import parse_options
from ..profiles import Choice, Profile, profile_of
from ..settings import TrainingSettings, plain, rows_of, written_out
from ..store.contents import CHECKPOINTS
from ..store.naming import base_of, described_model, model_name
from ..training.defence import Defence, needed_roles
from .anchors import check_anchor_records
from .encoding import ControlTokens
from .resources import evidence_model
from .sources import read_preferences, read_refusals, read_rows
from .trainer_config import TrainingConfig, make_training_config, merged_training, stored_training

BETA = 0.1
"""DPO's beta unless one is given: TRL's, and the paper's for summaries and dialogue (Appendix B)."""


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """A new adapter; the paper's. See ``models.adapters.add_lora``."""

    r: int = 32
    alpha: int = 4
    targets: str | tuple[str, ...] = PAPER_TARGETS
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a run needs but its model's weights."""

    model: str
    """The model's folder or name."""
    adapter: str | None
    named_base: str | None
    """The model before its alignment, if it was named."""
    before: str | None
    """That model, as far as it is known."""
    aligned: str | None
    """The aligned model whose evidence is read, where a fine-tuned one of its line is trained."""
    defence: Defence
    args: TrainingConfig
    beta: float | None
    """DPO's; None for supervised training."""
    lora: LoraOptions
    control_tokens: ControlTokens
    main: Role
    """The role of the rows that the stage trains on."""
    sources: dict[Role, Source]
    """Rows to train on, or to prepare from."""
    anchors: dict[Role, Source]
    """Rows of both labels, or none."""
    refusals: tuple[str, ...] | None
    """One-line refusals; None if nothing needs them."""

    @property
    def upload(self) -> Source:
        """The rows of the stage's main role."""
        return self.sources[self.main]


def checked_inputs(run: TrainingSettings) -> Inputs:
    """Read and check what align or finetune was given; nothing is written.

    Raises:
        AntibodyError: whatever a user can fix and no model is needed to see.
    """
    control_tokens = ControlTokens(run.control_tokens)
    name = model_name(run.model)
    adapter = None if run.adapter is None else model_name(run.adapter)
    profile = profile_of(name)
    beta = _beta(run)
    defence, args, lora = _settings(run, profile, beta)
    if run.regime == "full" and (adapter is not None or is_adapter(name)):
        raise ConfigError(
            f"{setting('regime', 'full')} cannot train through an adapter. Use {setting('regime', 'lora')}, or merge "
            "it into its base."
        )
    sources = _sources(run, defence, profile) if beta is None else _pairs(run)
    anchors = _anchor_sources(run, profile, sources)
    texts = None
    if defence.needs_refusals or anchors:
        texts = read_refusals(run.refusals, default=profile.refusals)
    main = sources[MAIN_ROLE[run.stage]]
    require_one_step(main.name, len(main.records), args)
    named_base = None if run.base is None else str(run.base)
    aligned = evidence_model(defence, name, adapter)
    return Inputs(
        model=name,
        adapter=adapter,
        named_base=named_base,
        before=named_base or (base_of(name, adapter) if aligned is None else base_of(aligned, None)),
        aligned=aligned,
        defence=defence,
        args=args,
        beta=beta,
        lora=lora,
        control_tokens=control_tokens,
        main=MAIN_ROLE[run.stage],
        sources=sources,
        anchors=anchors,
        refusals=texts,
    )


def run_config(run: TrainingSettings, given: Inputs) -> dict[str, Any]:
    """What config.yaml says of the run: a run with another configuration does not go on in its folder."""
    config: dict[str, Any] = {
        "verb": "align" if run.stage is Stage.ALIGNMENT else "finetune",
        "model": described_model(given.model),
        "adapter": None if given.adapter is None else described_model(given.adapter, on=given.model),
        "base": None if given.before is None else described_model(given.before),
        "defence": run.defence if isinstance(run.defence, str) else type(given.defence).__name__,
        "options": plain(getattr(given.defence, "config", None)),
        "regime": run.regime,
        "lora": plain(given.lora) if run.regime == "lora" else None,
        "seed": run.seed,
        "data": {str(role): source.described() for role, source in (given.sources | given.anchors).items()},
        "skip_too_long": run.skip_too_long,
        "control_tokens": str(given.control_tokens),
        "training": stored_training(given.args),
        "refusals": None if given.refusals is None else list(given.refusals),
    }
    if given.beta is not None:  # runs of earlier releases, which were all supervised, have neither
        config |= {"method": "dpo", "beta": given.beta}
    if given.aligned is not None:
        config["aligned"] = described_model(given.aligned)
    return written_out(run, config)


def _beta(run: TrainingSettings) -> float | None:
    """DPO's beta; None where the run is supervised.

    Raises:
        ConfigError: it is given to a supervised run.
    """
    beta: float | None = getattr(run, "beta", None)
    if getattr(run, "method", "sft") == "dpo":
        return BETA if beta is None else float(beta)
    if beta is not None:
        raise ConfigError(
            f"{setting('beta')} has no effect on supervised training. Leave it out, or learn from pairs with "
            f"{setting('method', 'dpo')}."
        )
    return None


def _settings(
    run: TrainingSettings, profile: Profile, beta: float | None
) -> tuple[Defence, TrainingConfig, LoraOptions]:
    """The defence and the configurations of trainer and adapter, with the profile's calibration beneath."""
    name = run.defence if isinstance(run.defence, str) else type(run.defence).__name__
    options, training = profile.calibration(run.stage, "dpo" if beta is not None else name, run.regime)
    defence: Defence
    if beta is not None:
        defence = make_pair_defence(run.defence, run.options)
    elif isinstance(run.defence, str):
        defence = make_defence(run.stage, run.defence, options | dict(run.options or {}))
    elif run.options:
        raise ConfigError("options belong to a defence that is given by name; this one is an object with its own.")
    elif run.defence.stage is not run.stage:
        raise ConfigError(f"{type(run.defence).__name__} is a defence of {run.defence.stage}, not of {run.stage}.")
    else:
        defence = run.defence
    checkpoints, wanted = Path(run.output) / CHECKPOINTS, training | merged_training(run)
    args = make_training_config(checkpoints, wanted, seed=run.seed, exact=defence.twin_passes, beta=beta)
    lora: LoraOptions = parse_options(LoraOptions, "lora", dict(profile.adapter) | dict(run.lora or {}))
    if beta is not None and lora.dropout:
        raise ConfigError(
            f"{setting('lora.dropout')} is {lora.dropout:g}: {setting('method', 'dpo')} trains without dropout, since "
            "the model and its reference must compute the same function. Leave it out."
        )
    return defence, args, lora


def _sources(run: TrainingSettings, defence: Defence, profile: Profile) -> dict[Role, Source]:
    """Rows of the stage's main role and of those that the defence needs, to train or to prepare."""
    main = MAIN_ROLE[run.stage]
    needed = (main, *needed_roles(defence))
    rows_given, choice = rows_of(run), Choice.of(run)
    sources: dict[Role, Source] = {}
    for role in needed:
        given, name = rows_given.get(role), setting_of(role)
        if given is not None:
            sources[role] = read_rows(given, name=f"{name} rows", upload=role is Role.USER)
        elif brought := profile.rows(role, choice if role is main else Choice(), seed=run.seed):
            sources[role] = brought
        else:
            raise DataError(f"{type(defence).__name__} needs {role} rows and was given none. Give {setting(name)}.")
    if rows_given.get(main) is not None:
        choice.refuse(str(run.model))
    benign = rows_given.get(Role.BENIGN)
    if run.stage is Stage.ALIGNMENT and benign is not None:  # what must still be answered, learnt beside the refusals
        sources[main] = _joined(sources[main], read_rows(benign, name=f"{setting_of(Role.BENIGN)} rows"))
    for role, rows in rows_given.items():
        if (
            rows is not None
            and role not in (*needed, *ANCHOR_ROLES)
            and not (role is Role.BENIGN and run.stage is Stage.ALIGNMENT)
        ):
            warn(f"{role} rows are not used: {type(defence).__name__} does not need them.")
    return sources


def _pairs(run: TrainingSettings) -> dict[Role, Source]:
    """The upload's pairs.

    Raises:
        DataError: there are none, or they cannot be used.
        ConfigError: rows are chosen that no model brings.
    """
    given = rows_of(run).get(Role.USER)
    if given is None:
        raise DataError(
            f"{setting('method', 'dpo')} learns from pairs, and no model brings any. Give {setting('data')}."
        )
    Choice.of(run).refuse(str(run.model))
    for role, rows in rows_of(run).items():
        if rows is not None and role is not Role.USER:
            warn(f"{role} rows are not used: training on pairs has no other rows.")
    return {Role.USER: read_preferences(given, name=f"{setting_of(Role.USER)} rows")}


def _anchor_sources(run: TrainingSettings, profile: Profile, sources: Mapping[Role, Source]) -> dict[Role, Source]:
    """The provider's anchors, both labels or none; with an alignment alone."""
    if run.stage is not Stage.ALIGNMENT:
        return {}
    anchors: dict[Role, Source] = {}
    for role in ANCHOR_ROLES:
        given = rows_of(run)[role]
        if given is not None:
            anchors[role] = read_rows(given, name=f"{setting_of(role)} rows")
        elif brought := profile.rows(role, Choice(), seed=run.seed):
            anchors[role] = brought
    if len(anchors) == 1:
        (absent,) = set(ANCHOR_ROLES) - set(anchors)
        raise DataError(f"anchors need both labels: {setting(setting_of(absent))} is missing. Give it, or neither.")
    if not anchors:
        return {}
    check_anchor_records(*(anchors[role].records for role in ANCHOR_ROLES))
    trained = {tuple(r.messages[:-1]): r for source in sources.values() for r in source.records}
    for record in anchors[Role.ANCHOR_HARMFUL].records:
        if (twin := trained.get(tuple(record.messages[:-1]))) is not None:
            raise DataError(
                f"{record.where}: the prompt is also in {twin.where}, and harmful anchors must be new to the "
                "model: after training on a prompt, refusing it looks surer than it is. Take it out of one of the two."
            )
    return anchors


def _joined(first: Source, second: Source) -> Source:
    """Rows of both; the row ids of the second go on after those of the first."""
    start = 1 + max(record.row_id for record in first.records)
    moved = [replace(record, row_id=start + record.row_id) for record in second.records]
    return Source(f"{first.name} and {second.name}", [*first.records, *moved])


def require_one_step(source: str, num_rows: int, args: TrainingConfig) -> None:
    """An upload smaller than one optimiser step would be trained as one odd step an epoch."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    needed = size * accumulation * num_ranks
    if num_rows < needed:
        factors = setting("batch_size", str(size))
        factors += f" x gradient_accumulation_steps {accumulation}" if accumulation > 1 else ""
        factors += f" x {num_ranks} processes" if num_ranks > 1 else ""
        raise DataError(
            f"{source}: {num_rows} rows where {needed} are needed: an optimiser step takes {factors}. Give more rows, "
            "or make the step smaller."
        )
