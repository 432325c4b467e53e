"""What a run takes from the lab where its model comes from there: rows, refusals, calibration."""

from typing import Any

from ..profiles import Choice as LabData
from ..profiles.lab import NUM_ROWS, LabProfile
from .sources import Source

MAX_NEW_TOKENS = LabProfile.max_new_tokens
__all__ = ["MAX_NEW_TOKENS", "NUM_ROWS", "LabData", "calibration", "lab_refusals", "lab_rows", "new_adapter"]


def lab_rows(kind: str, lab: LabData, *, seed: int, main: bool = True) -> Source:
    """Rows of a kind; ``main`` if ``lab.num`` speaks of them."""
    brought = LabProfile().rows(kind, lab if main else LabData(), seed=seed)
    assert brought is not None, "the lab brings rows of every kind"
    return Source(brought.name, brought.records)


def lab_refusals() -> tuple[str, ...]:
    """The refusals that the lab's model was aligned with."""
    return LabProfile.refusals


def calibration(stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See ``LabProfile.calibration``."""
    return LabProfile().calibration(stage, defence, regime)


def new_adapter() -> dict[str, Any]:
    """The lab's options of a LoRA adapter."""
    return dict(LabProfile.adapter)
