"""What a run is for, and what each of its data sets is for."""

from collections.abc import Mapping
from enum import StrEnum


class Stage(StrEnum):
    """When a defence acts: before, during or after the user's fine-tuning."""

    ALIGNMENT = "alignment"
    FINETUNING = "finetuning"
    POST = "post"


class Role(StrEnum):
    """What a data set is for."""

    USER = "user"
    """The upload."""
    ALIGNMENT = "alignment"
    """Prompt + refusal; with benign rows where the provider has them."""
    HARMFUL = "harmful"
    """Prompt + harmful completion."""
    BENIGN = "benign"
    ANCHOR_HARMFUL = "anchor-harmful"
    """Labelled rows that are never trained on, and by which later uploads are judged (screening/anchors.py)."""
    ANCHOR_BENIGN = "anchor-benign"


MAIN_ROLE: Mapping[Stage, Role] = {Stage.ALIGNMENT: Role.ALIGNMENT, Stage.FINETUNING: Role.USER}
"""The role whose rows an epoch counts, by stage."""


ANCHOR_ROLES = (Role.ANCHOR_HARMFUL, Role.ANCHOR_BENIGN)


def setting_of(role: str) -> str:
    """The name of the setting that brings the rows of a role: ``data`` for the upload, else ``harmful_data``."""
    return "data" if role == Role.USER else f"{role.replace('-', '_')}_data"
