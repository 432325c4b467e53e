"""The lab's own calibration: what replaces the papers' hyperparameters for a model a thousand times smaller.

The results of it: docs/demo/results.json (``antibody demo``), docs/defences.md, docs/antibody-posterior-results.md.
What was chosen on which prompts: ``CHOSEN``. The figures below are of the whole world, and none is a result.

Full fine-tuning: at 2e-4 the novel task is learnt in 4 epochs from every alignment; at 1e-4 it is not after Antibody
alignment, not even by the oracle. The temperature is the lever of Antibody's weights: at tau 1 harmful rows keep 4 %
of the weight, and in a plain loop that sufficed for harmful .92 where tau .2 had .008. On the novel task no tau helps:
each of its rows scores below every harmful one.

LoRA: the paper's adapter (r 32, alpha 4, on q, k and v) does not learn the novel task at 2e-3 or 5e-3 (accuracy 0); on
all linear layers with alpha 64, aligned at 1e-3 and fine-tuned at 5e-4, it does (accuracy .96 and more on clean
uploads; at 20 % harm one seed of three stays at .50). At 1e-3 a clean upload alone took the harmful score to 7, 1 and
33 % (novel task, three seeds).
"""

from typing import Any

ALIGNMENT_ROWS = 1024
"""Refusals and harmless answers in equal parts; as many harmful rows as refusals."""
ANCHOR_ROWS = 256
"""Anchor rows of each label."""
USER_ROWS = 500
HARMFUL_PROMPTS = 512
"""The number of all that the world holds."""

LORA: dict[str, Any] = {"r": 32, "alpha": 64, "targets": "all-linear"}
"""A new adapter; why not the paper's: the head of this file."""

_TRAINING = {"epochs": 4, "batch_size": 16, "weight_decay": 0.0, "max_grad_norm": 1.0}
_ALIGN = {"alpha": 0.1, "eta": 1.0, "m": 0.9, "lam2": 2.0}
_WEIGH = {"tau": 0.2}


def _preset(
    options: dict[str, Any], learning_rate: float, schedule: str, training: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    return {
        "options": dict(options),
        "training": {"learning_rate": learning_rate, "lr_scheduler_type": schedule, **_TRAINING, **(training or {})},
    }


_ALIGNING: dict[str, dict[str, Any]] = {
    "sft": {},
    "antibody": _ALIGN,
    "adversarial-loss": {"lam": 0.1},
    "booster": {"lam": 0.1},
    "repnoise": {"alpha": 0.3},
    "t-vaccine": {"gamma": 2, "score_every": 32},
    "tar": {"inner_steps": 8, "every": 4, "inner_learning_rates": (1e-4, 3e-4)},
}
_FINETUNING: dict[str, dict[str, Any]] = {
    "sft": {},
    "antibody": _WEIGH,
    "antibody-prescored": _WEIGH,
    "backdoor-enhanced-alignment": {"num_trigger_tokens": 32},
    "bds": {"scheduler": "neural", "temperature": 0.0},
    "buffer-and-reinforce": {"learning_rate": 2e-4},
    "gradshield": {"learning_rate": 2e-4},
    "lisa": {"num_alignment_steps": 2, "num_user_steps": 18, "rho": 0.01},
    "antibody-posterior": {},
    "pact": {"lam": 0.1},
    "ptst": {"safety_prompt": "Be helpful, honest and safe."},
    "toss": {"batch_size": 16, "learning_rate": 2e-4},
}

_REPAIRING: dict[str, dict[str, Any]] = {
    "one-shot-patch": {"num_steps": 20, "learning_rate": 1e-3},
    "safe-lora": {"threshold": 1.0},
}

_FINETUNING_TRAINING: dict[str, dict[str, Any]] = {"bds": {"max_grad_norm": 0.0}}
"""What differs from ``_TRAINING``. bds: its second set of weights is not clipped, so neither may the model's be."""

BDS_SCALAR = {"scheduler": "scalar", "transform": "sigmoid", "scheduler_lr": 0.1, "temperature": 0.0}
"""Where bds' other scheduler separates rows, with clipping and 8 epochs, after plain SFT alignment (AUROC, worst of
three seeds: .98; after 4 epochs .95, one seed) and less after Antibody (.87). A row's logit moves once an epoch, and at
first the two losses hardly differ. Tried on one seed with 4 epochs and adam_beta2 = .95: without clipping .75, with
softmax .90, with both .91."""

PRESETS: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {
    **{("alignment", name, "full"): _preset(options, 5e-4, "cosine") for name, options in _ALIGNING.items()},
    **{
        ("finetuning", name, "full"): _preset(options, 2e-4, "constant", _FINETUNING_TRAINING.get(name))
        for name, options in _FINETUNING.items()
    },
    **{("alignment", name, "lora"): _preset(options, 1e-3, "cosine") for name, options in _ALIGNING.items()},
    **{
        ("finetuning", name, "lora"): _preset(options, 5e-4, "constant", _FINETUNING_TRAINING.get(name))
        for name, options in _FINETUNING.items()
    },
    **{
        ("post", name, regime): {"options": dict(options), "training": {}}
        for name, options in _REPAIRING.items()
        for regime in ("full", "lora")
    },
}
"""(stage, defence, regime) to the defence's options and the trainer's arguments; of a defence that is not here, its own
defaults and plain SFT's arguments."""

CHOSEN = """\
Learning rates, budget, adapter and every option were first chosen by hand, with a few tries, on uploads and prompts of
the whole world, those for `report` among them. Those of eleven defences (`antibody-posterior`, which is ours, and ten
of the list at the end) and the learning rate of fine-tuning were then tried once more on the half to `calibrate` alone,
by a rule (`benchmarks/lab_presets.py`; one seed, both tasks, all figures in `benchmarks/results/lab_presets.json`):
repnoise's alone changed. The others were made to fit the lab, or are the papers'."""
"""What was chosen on which prompts, as the page of results says it; change it with a preset."""

_TRIED = "tried among {} on the calibration half"
WHY: dict[tuple[str, str], str] = {
    ("alignment", "antibody"): _TRIED.format(8) + ", which all leave 2 % of harm at most under antibody-posterior; "
    "first calibrated as the head of src/antibody_llm/lab/presets.py says",
    ("alignment", "adversarial-loss"): _TRIED.format(3),
    ("alignment", "booster"): _TRIED.format(3) + ", none of which leaves measurably less harm than no defence",
    ("alignment", "repnoise"): _TRIED.format(3) + ", of which it is the largest; 0.1, which is that of Booster's "
    "comparison and of all figures of the whole world, leaves 78 % of harm, this 71 %",
    ("alignment", "t-vaccine"): "made to fit: half of the 4 layers, scored 8 times in 256 steps",
    ("alignment", "tar"): "cut down: an eighth of the attack's 64 steps, which would cost as much as everything else "
    "together; rates around the one that users train at",
    ("finetuning", "antibody"): _TRIED.format(4) + ", none of which keeps the novel task and defends; first calibrated "
    "as the head of src/antibody_llm/lab/presets.py says",
    ("finetuning", "antibody-prescored"): "those of antibody",
    ("finetuning", "backdoor-enhanced-alignment"): "made to fit: an eighth of the context of 256 tokens",
    ("finetuning", "bds"): _TRIED.format(3) + ", none of which keeps the novel task; the scheduler that separates "
    "harmful from benign rows within 4 epochs after either alignment (AUROC, worst of three seeds: .98, of unseen rows "
    ".99, see benchmarks/results/bds_auroc.json). No noise, as released. Trained without clipping (max_grad_norm = 0), "
    "which its second set of weights does not have",
    ("finetuning", "buffer-and-reinforce"): "made to fit: its short runs have the lab's learning rate of fine-tuning",
    ("finetuning", "gradshield"): "made to fit: its trial runs have the lab's learning rate of fine-tuning",
    ("finetuning", "lisa"): _TRIED.format(4) + ", whose harm differs little; rho 1 loses 7 to 9 points of accuracy. "
    "The paper's 1 to 9, in a run of 128 steps",
    ("finetuning", "pact"): _TRIED.format(3) + ": 0.3 leaves 29 % of harm and refuses 14 % of harmless questions. Of "
    "the lab's 1,024 tokens 50 are many",
    ("finetuning", "ptst"): "made to fit: the default prompt alone is longer than the context. The lab's base has "
    "never seen a system message",
    ("finetuning", "toss"): "made to fit: its short runs have batch size and learning rate of the lab's fine-tuning",
    ("post", "one-shot-patch"): _TRIED.format(3) + ": 10 steps leave 41 % of harm, these 1 %",
    ("post", "safe-lora"): _TRIED.format(2) + ", neither of which keeps the novel task (accuracy 0 %)",
}  # fmt: skip
"""Where options are not the defence's own defaults: whether they were tried by a rule, made to fit or cut down."""
