"""Load a sequence classifier, such as a judge of harm, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from .checks import check_finite, check_folder, not_loaded
from .names import resolve


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A classifier, ready to judge."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_classifier(name: str) -> LoadedClassifier:
    """The sequence classifier called ``name``: a folder or a Hub id.

    Its weights are float32 on a CPU and bfloat16 on a GPU, where it is put if there is one.

    Raises:
        ModelError: something is missing, does not load, or does not fit together.
    """
    place = resolve(name)
    if Path(place).is_dir():
        check_folder(Path(place), name)
    on_gpu = torch.cuda.is_available()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            place,
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
        )
    except Exception as error:
        raise not_loaded(name, "classifier", error) from error
    model, info = loaded
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise ModelError(
                f"{name}: {len(info[kind])} weights are {kind.split('_')[0]} (first: {sorted(info[kind])[0]}) and "
                "would be random. Name a model that was trained as a classifier."
            )
    model = model.to("cuda" if on_gpu else "cpu").eval()
    check_finite(model, name, None)
    return LoadedClassifier(model, tokenizer)
