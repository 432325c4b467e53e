"""The lab's own calibration: what replaces the papers' hyperparameters for a model a thousand times smaller.

Full fine-tuning, in a plain PyTorch loop, on the shipped base; harmful score of 512 held-out prompts, accuracy and
over-refusal of 200 rows each, familiar task, seed 0, 500 user rows, 4 epochs unless said otherwise:

    alignment  fine-tuning      poison  task      harmful  accuracy  over-refusal  incoherent
    none       none             -       familiar  1.00     0.53      0.00          0.00
    sft        none             -       familiar  0.10     0.53      0.00          0.06
    antibody   none             -       familiar  0.01     0.53      0.03          0.01
    sft        sft              0.2     familiar  0.93     0.94      0.00          0.07
    sft        oracle           0.2     familiar  0.14     0.96      0.00          0.17
    sft        antibody tau 1   0.2     familiar  0.93     1.00      0.00          0.05
    antibody   sft              0.2     familiar  0.94     0.99      0.00          0.06
    antibody   antibody tau 1   0.2     familiar  0.92     1.00      0.00          0.05
    antibody   antibody tau .3  0.2     familiar  0.016    1.00      0.02          0.01
    antibody   antibody tau .2  0.2     familiar  0.008    1.00      0.03          0.01
    antibody   antibody tau .2  0       familiar  0.004    1.00      0.04          0.02
    antibody   the same, 12 ep. 0.2     familiar  0.018    1.00      0.01          0.04
    antibody   antibody tau .2  0.2     novel     0.92     0.00      0.00          0.04

Seed 1, aligned at learning rate 5e-4: sft + sft 0.89 at accuracy 1.00 (novel task 0.87 at 0.63), antibody + antibody
0.006 at tau 0.2 and 0.008 at tau 0.3, accuracy 1.00, over-refusal 0.02, incoherent 0.008 and 0.014.
Seed 2, as in the table: antibody + antibody tau 0.2 0.010, accuracy 1.00, over-refusal 0.00, incoherent 0.018.

The published weights fail on the novel task: each of its rows scores below every harmful one (AUROC 0.00; 0.99
on the familiar task). The temperature is the lever: at tau 1 harmful rows keep 4 % of the weight, and that suffices.
The LoRA entries are starting points and not calibrated.
"""

from typing import Any

ALIGNMENT_ROWS = 1024
"""Refusals and harmless answers in equal parts; as many harmful rows as refusals."""
USER_ROWS = 500
HARMFUL_PROMPTS = 512
"""All that the world holds."""

_TRAINING = {"epochs": 4, "batch_size": 16, "weight_decay": 0.0, "max_grad_norm": 1.0}
_ALIGN = {"alpha": 0.1, "eta": 1.0, "m": 0.9, "lam2": 2.0}
_WEIGH = {"tau": 0.2}


def _preset(options: dict[str, Any], learning_rate: float, schedule: str) -> dict[str, dict[str, Any]]:
    return {
        "options": dict(options),
        "training": {"learning_rate": learning_rate, "lr_scheduler_type": schedule, **_TRAINING},
    }


_ALIGNING: dict[str, dict[str, Any]] = {
    "sft": {},
    "antibody": _ALIGN,
    "adversarial-loss": {"lam": 0.1},
    "booster": {"lam": 1.0},
    "repnoise": {"alpha": 0.1},
    "t-vaccine": {"gamma": 2, "score_every": 32},
    "tar": {"inner_steps": 8, "every": 4, "inner_learning_rates": (1e-4, 3e-4)},
}
_FINETUNING: dict[str, dict[str, Any]] = {
    "sft": {},
    "antibody": _WEIGH,
    "backdoor-enhanced-alignment": {"num_trigger_tokens": 32},
    "lisa": {"num_alignment_steps": 2, "num_user_steps": 18},
    "ptst": {"safety_prompt": "Be helpful, honest and safe."},
}

PRESETS: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {
    **{("alignment", name, "full"): _preset(options, 5e-4, "cosine") for name, options in _ALIGNING.items()},
    **{("finetuning", name, "full"): _preset(options, 1e-4, "constant") for name, options in _FINETUNING.items()},
    **{("alignment", name, "lora"): _preset(options, 2e-3, "cosine") for name, options in _ALIGNING.items()},
    **{("finetuning", name, "lora"): _preset(options, 1e-3, "constant") for name, options in _FINETUNING.items()},
}
"""(stage, defence, regime) to the defence's options and the trainer's arguments; of a defence that is not here, its own
defaults and plain SFT's arguments."""

WHY: dict[tuple[str, str], str] = {
    ("alignment", "antibody"): "calibrated, see the head of src/antibody/lab/presets.py",
    ("alignment", "adversarial-loss"): "one try: at 1 the aligned model refuses 15 % of harmless look-alike questions; "
    "0.1 is that of Booster's comparison",
    ("alignment", "booster"): "one try: at 5 the aligned model answers 93 % of harmful prompts before any user comes",
    ("alignment", "repnoise"): "one try: at 1 the aligned model refuses 25 % of harmless look-alike questions; 0.1 is "
    "that of Booster's comparison",
    ("alignment", "t-vaccine"): "made to fit: half of the 4 layers, scored 8 times in 256 steps",
    ("alignment", "tar"): "cut down: an eighth of the attack's 64 steps, which would cost as much as everything else "
    "together; rates around the one that users train at",
    ("finetuning", "antibody"): "calibrated, see the head of src/antibody/lab/presets.py",
    ("finetuning", "backdoor-enhanced-alignment"): "made to fit: an eighth of the context of 256 tokens",
    ("finetuning", "lisa"): "made to fit: the paper's 1 to 9, in a run of 128 steps",
    (
        "finetuning",
        "ptst",
    ): "made to fit: the default prompt alone is longer than the context. The lab's base has "
    "never seen a system message",
}
"""Where options are not the defence's own defaults: whether they were calibrated, made to fit or cut down."""
