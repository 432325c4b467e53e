"""The catalogue: every defence by stage and name, a line each."""

from collections.abc import Mapping
from typing import Any

from ..data.roles import Stage
from ..errors import ConfigError
from ..mentions import setting
from ..parsing import nearest, parse_options
from ..text import quoted
from ..training.defence import Defence, PairDefence, Repair
from .alignment.adversarial_loss import AdversarialLoss
from .alignment.antibody import AntibodyAlignment
from .alignment.booster import Booster
from .alignment.derta import DeRTa
from .alignment.repnoise import RepNoise
from .alignment.safety_recovery import SafetyRecovery
from .alignment.seam import Seam
from .alignment.sft import AlignmentSFT
from .alignment.t_vaccine import TVaccine
from .alignment.tar import TAR
from .alignment.vaccine import Vaccine
from .finetuning.antibody import AntibodyFinetuning
from .finetuning.antibody_posterior import AntibodyPosterior
from .finetuning.antibody_prescored import AntibodyPrescored
from .finetuning.antibody_tokens import AntibodyTokens
from .finetuning.backdoor_enhanced_alignment import BackdoorEnhancedAlignment
from .finetuning.bds import BDS
from .finetuning.behaviour_aware_sampling import BehaviourAwareSampling
from .finetuning.buffer_and_reinforce import BufferAndReinforce
from .finetuning.constrained_sft import ConstrainedSFT
from .finetuning.ema import EMA
from .finetuning.ewc import EWC
from .finetuning.gradshield import GradShield
from .finetuning.kl_to_aligned import KLToAligned
from .finetuning.ldifs import LDIFS
from .finetuning.lisa import Lisa
from .finetuning.lookahead import LookAhead
from .finetuning.pact import PACT
from .finetuning.panacea import Panacea
from .finetuning.ptst import PTST
from .finetuning.safe_region import SafeRegion
from .finetuning.safegrad import SafeGrad
from .finetuning.safeinstr import SafeInstr
from .finetuning.sft import FinetuningSFT
from .finetuning.toss import TOSS
from .post.antidote import Antidote
from .post.one_shot_patch import OneShotPatch
from .post.safe_delta import SafeDelta
from .post.safe_lora import SafeLoRA
from .post.wise_ft import WiseFT
from .preference.antibody_posterior import PreferencePosterior
from .preference.sft import PreferenceSFT

CATALOGUE: dict[tuple[Stage, str], type[Defence] | type[Repair]] = {
    (Stage.ALIGNMENT, "sft"): AlignmentSFT,
    (Stage.ALIGNMENT, "antibody"): AntibodyAlignment,
    (Stage.ALIGNMENT, "adversarial-loss"): AdversarialLoss,
    (Stage.ALIGNMENT, "booster"): Booster,
    (Stage.ALIGNMENT, "derta"): DeRTa,
    (Stage.ALIGNMENT, "repnoise"): RepNoise,
    (Stage.ALIGNMENT, "safety-recovery"): SafetyRecovery,
    (Stage.ALIGNMENT, "seam"): Seam,
    (Stage.ALIGNMENT, "t-vaccine"): TVaccine,
    (Stage.ALIGNMENT, "tar"): TAR,
    (Stage.ALIGNMENT, "vaccine"): Vaccine,
    (Stage.FINETUNING, "sft"): FinetuningSFT,
    (Stage.FINETUNING, "antibody"): AntibodyFinetuning,
    (Stage.FINETUNING, "antibody-posterior"): AntibodyPosterior,
    (Stage.FINETUNING, "antibody-prescored"): AntibodyPrescored,
    (Stage.FINETUNING, "antibody-tokens"): AntibodyTokens,
    (Stage.FINETUNING, "backdoor-enhanced-alignment"): BackdoorEnhancedAlignment,
    (Stage.FINETUNING, "bds"): BDS,
    (Stage.FINETUNING, "behaviour-aware-sampling"): BehaviourAwareSampling,
    (Stage.FINETUNING, "buffer-and-reinforce"): BufferAndReinforce,
    (Stage.FINETUNING, "constrained-sft"): ConstrainedSFT,
    (Stage.FINETUNING, "ema"): EMA,
    (Stage.FINETUNING, "ewc"): EWC,
    (Stage.FINETUNING, "gradshield"): GradShield,
    (Stage.FINETUNING, "kl-to-aligned"): KLToAligned,
    (Stage.FINETUNING, "ldifs"): LDIFS,
    (Stage.FINETUNING, "lisa"): Lisa,
    (Stage.FINETUNING, "lookahead"): LookAhead,
    (Stage.FINETUNING, "pact"): PACT,
    (Stage.FINETUNING, "panacea"): Panacea,
    (Stage.FINETUNING, "ptst"): PTST,
    (Stage.FINETUNING, "safe-region"): SafeRegion,
    (Stage.FINETUNING, "safegrad"): SafeGrad,
    (Stage.FINETUNING, "safeinstr"): SafeInstr,
    (Stage.FINETUNING, "toss"): TOSS,
    (Stage.POST, "antidote"): Antidote,
    (Stage.POST, "one-shot-patch"): OneShotPatch,
    (Stage.POST, "safe-delta"): SafeDelta,
    (Stage.POST, "safe-lora"): SafeLoRA,
    (Stage.POST, "wise-ft"): WiseFT,
}

PAIR_DEFENCES: dict[str, type[PairDefence]] = {
    "sft": PreferenceSFT,
    "antibody-posterior": PreferencePosterior,
}
"""What fine-tuning on pairs (DPO) has; the others weigh the rows of supervised training, and say nothing of pairs."""


def defence_names(stage: Stage) -> list[str]:
    """The names of a stage's defences, in the order of the catalogue."""
    return [name for s, name in CATALOGUE if s == stage]


def make_defence(stage: Stage, name: str, options: Mapping[str, Any] | None = None) -> Defence:
    """Make a defence that trains.

    Args:
        stage: Alignment or fine-tuning.
        name: The defence's name in the catalogue.
        options: The hyperparameters by name, as parsed from YAML or as strings from the command line.

    Raises:
        ConfigError: no such defence, no such option (the nearest name is offered), or a value that does not fit.
    """
    made = _made(stage, name, options)
    assert isinstance(made, Defence), "the post stage has repairs: make_repair"
    return made


def make_pair_defence(name: Any, options: Mapping[str, Any] | None = None) -> PairDefence:
    """Make a defence of fine-tuning on pairs.

    Args:
        name: The defence's name in ``PAIR_DEFENCES``.
        options: The hyperparameters by name.

    Raises:
        ConfigError: it is not one of them, has no such option, or is an object.
    """
    if not isinstance(name, str) or name not in PAIR_DEFENCES:
        shown = quoted(name) if isinstance(name, str) else type(name).__name__
        there = " or ".join(setting("defence", each) for each in PAIR_DEFENCES)
        raise ConfigError(
            f"defence {shown} does not exist for {setting('method', 'dpo')}: it would have to be measured on pairs. "
            f"Give {there}.",
            field="defence",
        )
    cls = PAIR_DEFENCES[name]
    return cls(parse_options(cls.options, name, options or {}, group="options"))


def make_repair(name: str, options: Mapping[str, Any] | None = None) -> Repair:
    """Make a repair, which is a defence of the post stage; arguments and errors are those of ``make_defence``."""
    made = _made(Stage.POST, name, options)
    assert isinstance(made, Repair), "the other stages have defences: make_defence"
    return made


def _made(stage: Stage, name: str, options: Mapping[str, Any] | None) -> Defence | Repair:
    cls = CATALOGUE.get((stage, name))
    if cls is None:
        names = defence_names(stage)
        raise ConfigError(
            f"no {stage} defence is called {quoted(name)}{nearest(name, names)} There are: {', '.join(names)}.",
            field="defence",
        )
    return cls(parse_options(cls.options, name, options or {}, group="options"))
