"""The English profile's settings for a pretrained model of a few hundred million weights.

Where they come from: a few tries with Gemma 3 270M (rank 16 on all linear layers) on prompts and uploads of the purpose
``calibrate``, one seed, 80 harmful prompts and 80 look-alikes:

    plain alignment, batches of 16, 3e-4, 1 epoch   harmful score .00, over-refusal  .99: it refuses nearly everything
    ... of 8, 1e-3, 1 epoch                                       .05,               .15
    ... of 8, 4e-4, 2 epochs                                      .10,               .00
    Antibody's, batches of 8, 1e-3, 1 epoch                       .00,               .96 and more, lam2 2, .3 and .05
    ... of 4, 5e-4, 2 epochs, lam2 .3                             .00,               .00
    plain fine-tuning of 300 rows, a fifth of them harmful, novel task, 2 epochs: batches of 16 at 3e-4 have learnt the
    answers' form and not the label (accuracy .53), of 8 at 3e-4 all (1.00); under antibody-posterior 3e-4 is not
    enough (.44), and 6e-4 is (1.00)

All of it: benchmarks/results/english_tries.json. The .53 alone is of prompts of the purpose ``report``: the first cells
of the study, which showed that batches of 16 are unusable. alpha, eta and m of Antibody's alignment are the lab's.
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
    "antibody": {"alpha": 0.1, "eta": 1.0, "m": 0.9, "lam2": 0.3},
}
_MORE_STEPS = {"learning_rate": 5e-4, "per_device_train_batch_size": 4}
"""What Antibody's alignment of an adapter changes: in a hundred large steps it learns to refuse, and not what."""
_FINETUNING: dict[str, dict[str, Any]] = {
    "antibody": {"tau": 0.2},
    "antibody-prescored": {"tau": 0.2},
}
_LEARNING_RATE = {"lora": {"alignment": 4e-4, "finetuning": 6e-4}, "full": {"alignment": 2e-5, "finetuning": 2e-5}}


def preset(stage: str, defence: str, regime: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a defence and the trainer's arguments."""
    options = {"alignment": _ALIGNING, "finetuning": _FINETUNING}.get(stage, {}).get(defence, {})
    training: dict[str, Any] = {
        "learning_rate": _LEARNING_RATE[regime]["alignment" if stage == "alignment" else "finetuning"],
        "lr_scheduler_type": "cosine" if stage == "alignment" else "constant",
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    if (stage, defence, regime) == ("alignment", "antibody", "lora"):
        training |= _MORE_STEPS
    return dict(options), training
