"""The English profile's settings for a pretrained model of a few hundred million weights, not yet calibrated.

Where they come from: the first trials with Gemma 3 270M (rank 16 on all linear layers, 3e-4, batches of 16), and the
lab's calibration of Antibody's alignment, since the paper's constants do not align a small model. Whoever calibrates
them does so on rows of the purpose ``calibrate``, and reports on ``report``.
"""

from typing import Any

TAUGHT_ROWS = 1000
"""Rows that the base is taught before any alignment."""
TEACHING: dict[str, Any] = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-5}

ALIGNMENT_ROWS = 800
"""Refusals and harmless answers in equal parts; as many harmful rows as refusals."""
ANCHOR_ROWS = 128
"""Anchor rows of each label."""
USER_ROWS = 300
EVALUATION_ROWS = 200
"""Rows of each evaluation set."""

LORA: dict[str, Any] = {"r": 16, "alpha": 32, "targets": "all-linear"}
"""A new adapter."""

_ALIGNING: dict[str, dict[str, Any]] = {
    "antibody": {"alpha": 0.1, "eta": 1.0, "m": 0.9, "lam2": 2.0},
}
_FINETUNING: dict[str, dict[str, Any]] = {
    "antibody": {"tau": 0.2},
    "antibody-prescored": {"tau": 0.2},
}
_LEARNING_RATE = {"lora": 3e-4, "full": 2e-5}
_EPOCHS = {"alignment": 1, "finetuning": 2}


def preset(stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a defence and the trainer's arguments."""
    options = {"alignment": _ALIGNING, "finetuning": _FINETUNING}.get(stage, {}).get(defence, {})
    training: dict[str, Any] = {
        "learning_rate": _LEARNING_RATE[regime],
        "lr_scheduler_type": "cosine" if stage == "alignment" else "constant",
        "num_train_epochs": _EPOCHS.get(stage, 1),
        "per_device_train_batch_size": 16,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    return dict(options), training
