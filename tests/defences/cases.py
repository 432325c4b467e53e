"""One small setting of every defence of the catalogue, at which it really does something."""

from antibody.defences.catalogue import CATALOGUE
from antibody.training.step import Stage

ACTIVE = {
    (Stage.ALIGNMENT, "sft"): {},
    (Stage.ALIGNMENT, "antibody"): {"eta": 1.0, "lam2": 0.5, "m": 0.9},
    (Stage.ALIGNMENT, "booster"): {"lam": 2.0, "alpha": 0.5},
    (Stage.FINETUNING, "sft"): {},
    (Stage.FINETUNING, "antibody"): {"tau": 0.5},
}
"""Options by (stage, name). A defence without an entry fails the battery: add one line here."""

TRAINED = [key for key in CATALOGUE if key[0] is not Stage.POST]
IDS = [f"{stage}-{name}" for stage, name in TRAINED]
