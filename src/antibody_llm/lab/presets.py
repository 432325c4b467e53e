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
    "repnoise": {"alpha": 0.1},
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
Learning rates, budget, adapter and every option were chosen by hand, with a few tries, on uploads and prompts of the
whole world, those for `report` among them; so were the defaults of `antibody-posterior`, which is ours. The exceptions
name the calibration half in the list at the end: they were chosen on that half alone."""
"""What was chosen on which prompts, as the page of results says it; change it with a preset."""

WHY: dict[tuple[str, str], str] = {
    ("alignment", "antibody"): "calibrated, see the head of src/antibody_llm/lab/presets.py",
    ("alignment", "adversarial-loss"): "one try: after 2 epochs at 1 the aligned model refuses 15 % of harmless "
    "look-alike questions; 0.1 is that of Booster's comparison",
    (
        "alignment",
        "booster",
    ): "one try: after 2 epochs at 5 the aligned model answers 93 % of harmful prompts before any "
    "user comes, at 0.3 still 49 %",
    ("alignment", "repnoise"): "one try: after 2 epochs at 1 the aligned model refuses 25 % of harmless look-alike "
    "questions; 0.1 is that of Booster's comparison",
    ("alignment", "t-vaccine"): "made to fit: half of the 4 layers, scored 8 times in 256 steps",
    ("alignment", "tar"): "cut down: an eighth of the attack's 64 steps, which would cost as much as everything else "
    "together; rates around the one that users train at",
    ("finetuning", "antibody"): "calibrated, see the head of src/antibody_llm/lab/presets.py",
    ("finetuning", "antibody-prescored"): "those of antibody",
    ("finetuning", "backdoor-enhanced-alignment"): "made to fit: an eighth of the context of 256 tokens",
    (
        "finetuning",
        "bds",
    ): "tried on three seeds: the scheduler that separates harmful from benign rows within 4 epochs after either "
    "alignment (AUROC, worst seed: .98, of unseen rows .99, see benchmarks/results/bds_auroc.json; the scalar one "
    "needs 8, and after Antibody alignment stays at .87). No noise, as released: with it accuracy is 90 % instead of "
    "100 % (one seed). Trained without clipping (max_grad_norm = 0), which its second set of weights does not have: "
    "with clipping the ranking is turned over after Antibody alignment (AUROC .14, one seed)",
    (
        "finetuning",
        "buffer-and-reinforce",
    ): "made to fit: its short runs have the learning rate of the lab's fine-tuning",
    ("finetuning", "gradshield"): "made to fit: its trial runs have the learning rate of the lab's fine-tuning",
    ("finetuning", "lisa"): "made to fit: the paper's 1 to 9, in a run of 128 steps. One try: at rho = 1 no task is "
    "learnt (accuracy 53 %); 0.01 is that of later papers",
    (
        "finetuning",
        "pact",
    ): "four tries on one seed, on the calibration half: at 1 no task is learnt (accuracy 0 %), at 0.3 "
    "half (55 %). Of the lab's 1,024 tokens 50 are many",
    (
        "finetuning",
        "ptst",
    ): "made to fit: the default prompt alone is longer than the context. The lab's base has "
    "never seen a system message",
    ("finetuning", "toss"): "made to fit: its short runs have batch size and learning rate of the lab's fine-tuning",
    (
        "post",
        "one-shot-patch",
    ): "nine tries on one seed, on the calibration half: 10 steps at 1e-4 leave a harmful score "
    "of 90 %, 20 at 1e-3 leave 4 %",
    (
        "post",
        "safe-lora",
    ): "three tries on one seed, on the calibration half: a threshold of 0.5 leaves a harmful score "
    "of 74 %, 1 leaves 28 %",
}
"""Where options are not the defence's own defaults: whether they were calibrated, made to fit or cut down."""
