"""One small setting of every defence of the catalogue, at which it really does something."""

from antibody_llm.data.roles import Stage
from antibody_llm.defences.catalogue import CATALOGUE

ACTIVE = {
    (Stage.ALIGNMENT, "sft"): {},
    (Stage.ALIGNMENT, "antibody"): {"eta": 1.0, "lam2": 0.5, "m": 0.9},
    (Stage.ALIGNMENT, "adversarial-loss"): {"lam": 0.5},
    (Stage.ALIGNMENT, "booster"): {"lam": 2.0, "alpha": 0.5},
    (Stage.ALIGNMENT, "derta"): {"mu": 0.5, "lam": 0.5},
    (Stage.ALIGNMENT, "repnoise"): {"alpha": 0.5, "beta": 0.5},
    (Stage.ALIGNMENT, "safety-recovery"): {"alpha": 0.5},
    (Stage.ALIGNMENT, "seam"): {"alpha": 1.0, "beta": 0.1, "epsilon": 0.02},
    (Stage.ALIGNMENT, "t-vaccine"): {"rho": 2.0, "gamma": 1, "score_every": 2},
    (Stage.ALIGNMENT, "tar"): {
        "inner_steps": 2,
        "every": 1,
        "inner_learning_rates": [0.001],
        "lam_tr": 1.0,
        "lam_hidden": 0.01,
    },
    (Stage.ALIGNMENT, "vaccine"): {"rho": 2.0},
    (Stage.FINETUNING, "sft"): {},
    (Stage.FINETUNING, "antibody"): {"tau": 0.5},
    (Stage.FINETUNING, "antibody-posterior"): {"refresh": 1, "caution": 2.0, "rehearsal": 0.2},
    (Stage.FINETUNING, "antibody-prescored"): {"tau": 0.5},
    (Stage.FINETUNING, "antibody-tokens"): {"caution": 2.0, "rehearsal": 0.2, "vocabulary": 5},
    (Stage.FINETUNING, "backdoor-enhanced-alignment"): {"num_safety_rows": 3, "num_trigger_tokens": 5},
    (Stage.FINETUNING, "bds"): {"scheduler_lr": 0.2, "temperature": 0.01},
    (Stage.FINETUNING, "behaviour-aware-sampling"): {"ratio": 0.2, "num_categories": 3},
    (Stage.FINETUNING, "buffer-and-reinforce"): {
        "num_buffer_steps": 2,
        "num_reinforce_steps": 2,
        "learning_rate": 3e-5,  # Adam divides small gradients by themselves, rounding included; of ranks too
    },
    (Stage.FINETUNING, "constrained-sft"): {"beta": 1.0},
    (Stage.FINETUNING, "ema"): {"half_life": 0.5},
    (Stage.FINETUNING, "ewc"): {"lam": 20.0},
    (Stage.FINETUNING, "gradshield"): {
        "tolerance": 0.0,
        "num_probes": 1,
        "num_steps": 2,
        "batch_size": 8,
        "learning_rate": 3e-3,  # 3 rows are left out, by a distance that rounding does not reach
    },
    (Stage.FINETUNING, "kl-to-aligned"): {"risk": "token"},
    (Stage.FINETUNING, "ldifs"): {"rho": 0.01},
    (Stage.FINETUNING, "lisa"): {"num_alignment_steps": 2, "num_user_steps": 1, "rho": 0.5},
    (Stage.FINETUNING, "lookahead"): {"num_preview_tokens": 2},
    (Stage.FINETUNING, "pact"): {"lam": 0.5, "num_tokens": 20, "num_prompts": 12, "num_positions": 4},
    (Stage.FINETUNING, "panacea"): {"rho": 0.3, "lam": 0.5},
    (Stage.FINETUNING, "ptst"): {"safety_prompt": "t5 t6 t7"},
    (Stage.FINETUNING, "safe-region"): {"radius": 0.5, "tau": 0.8, "check_every": 2},
    (Stage.FINETUNING, "safegrad"): {"rho": 0.5},
    (Stage.FINETUNING, "safeinstr"): {"ratio": 0.2},
    (Stage.FINETUNING, "toss"): {"share": 0.3, "rounds": 2, "num_epochs": 1, "batch_size": 16, "learning_rate": 0.001},
    (Stage.POST, "antidote"): {"alpha": 0.25},
    (Stage.POST, "one-shot-patch"): {"num_steps": 4, "learning_rate": 0.001},
    (Stage.POST, "safe-delta"): {"budget": 0.3},
    (Stage.POST, "safe-lora"): {"threshold": 0.9},
    (Stage.POST, "wise-ft"): {"share": 0.5},
}
"""Options by (stage, name). A defence without an entry fails the battery: add one line here."""

TRAINED = [key for key in CATALOGUE if key[0] is not Stage.POST]
IDS = [f"{stage}-{name}" for stage, name in TRAINED]
