"""What a run leaves in its folder: metrics, samples, and the weights with what a reader must know of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ..data.records import Record
from ..models.loading import LoadedModel
from ..models.names import ALIGNED, ALIGNED_WEIGHTS, PACKAGED, read_provenance
from ..models.saving import save_adapter, save_model
from ..store.contents import METRICS
from ..store.folder import RunFolder
from ..store.naming import BASE_WEIGHTS
from ..training.defence import Defence, Repair
from ..training.trainer import StepTrainer
from .metrics import SAMPLES, write_metrics, write_samples


def save_run(
    folder: RunFolder, trainer: StepTrainer, loaded: LoadedModel, defence: Defence, upload: Sequence[Record]
) -> str:
    """Write what training left; returns the name of the folder with the weights."""
    write_metrics(folder.path / METRICS, trainer.state.log_history)
    if len(trainer.row_log):
        write_samples(folder.path / SAMPLES, trainer.row_log, upload)
    return save_weights(folder, trainer.context.model, loaded, defence)


def save_weights(folder: RunFolder, model: nn.Module, loaded: LoadedModel, defence: Defence | Repair) -> str:
    """Write the adapter, or the whole model, with what a reader must know of it; returns the folder's name."""
    provenance = {
        "verb": folder.config["verb"],
        "defence": folder.config["defence"],
        "deployment": dataclasses.asdict(defence.deployment),
    }
    provenance |= _aligned(folder.config)
    if isinstance(model, PeftModel):
        given = folder.config["model"]
        provenance[BASE_WEIGHTS] = (given["under"] or given)["weights"]
        name = "adapter"
        save_adapter(model, folder.path / name, base=loaded.name, tokenizer=loaded.tokenizer, provenance=provenance)
    else:
        name, base, whole = "model", loaded.base or loaded.name, cast(PreTrainedModel, model)
        save_model(whole, folder.path / name, tokenizer=loaded.tokenizer, base=base, provenance=provenance)
    return name


def _aligned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model that the first fine-tuning of the line started from; empty before any, or where it is not known."""
    if config["verb"] == "align":
        return {}
    given = config["adapter"] or config["model"]
    earlier = read_provenance(given["place"])
    if ALIGNED in earlier:
        return {key: earlier[key] for key in (ALIGNED, ALIGNED_WEIGHTS) if key in earlier}
    if "repair" in (config["verb"], earlier.get("verb")) or earlier.get("verb") == "finetune":
        return {}  # it was fine-tuned by a release that did not write this down
    name = given["name"] if given["name"] in PACKAGED else given["place"]
    return {ALIGNED: name, ALIGNED_WEIGHTS: given["weights"]}
