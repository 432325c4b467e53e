"""One small run through the real Trainer."""

from pathlib import Path

from trl import SFTConfig

from antibody.models.adapters import add_lora
from antibody.training.step import Defence
from antibody.training.trainer import DefendedTrainer
from tests.tinylm import random_refusals, random_rows, tiny_llama, tiny_tokenizer

ROWS = {
    "user": random_rows(22, seed=1),
    "alignment": random_rows(22, seed=2),
    "harmful": random_rows(13, seed=3),
    "benign": random_rows(9, seed=4),
}


def config(folder: Path, **overrides) -> SFTConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    } | overrides
    return SFTConfig(**settings)


def trainer(
    folder: Path, defence: Defence, *, lora: bool = False, model=None, rows=None, **overrides
) -> DefendedTrainer:
    if model is None:
        model = tiny_llama()
    if lora:
        model = add_lora(model, r=4, targets=["q_proj", "v_proj"], seed=0)
    return DefendedTrainer(
        model,
        config(folder, **overrides),
        defence=defence,
        rows=rows or ROWS,
        processing_class=tiny_tokenizer(),
        refusals=random_refusals(),
    )


def weights(run: DefendedTrainer) -> dict:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}
