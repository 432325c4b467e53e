"""Trim a model's vocabulary to the tokens that given texts use, so that a small model is not mostly embeddings.

A byte-pair encoder makes a token of a text by merges. Each kept token is kept with every token on its way there, all
single characters and bytes are kept, and a merge is kept if its three tokens are. The encoder then does to these texts
exactly what it did before: every merge that it applied is there, and of those that are left out none was ever the
first to apply. Text of other words is cut into smaller tokens.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import ModelError
from ..mentions import setting

_CONFIG_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PROCESSORS = ("TemplateProcessing", "ByteLevel", "Sequence")
_SIZE = 512
"""Texts encoded in one call."""


@dataclass(frozen=True)
class Trimmed:
    """A model with a smaller vocabulary."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept: list[int]
    """The old id of every new one."""


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, name: str
) -> Trimmed:
    """A copy of a model and its tokenizer with the tokens that the texts use.

    Args:
        model: The model; it is not changed.
        tokenizer: Its tokenizer, whose chat template's own tokens are kept.
        texts: The texts that must be encoded as before.
        name: What an error calls the model.

    Raises:
        ModelError: the tokenizer is not a byte-pair encoder that can be trimmed.
    """
    state = _state(tokenizer, name)
    kept = kept_ids(tokenizer, state, texts, also=_ends(model))
    return Trimmed(_smaller_model(model, kept), _smaller_tokenizer(tokenizer, state, kept), kept)


def kept_ids(
    tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any], texts: Sequence[str], *, also: Iterable[int] = ()
) -> list[int]:
    """The ids that are kept, in their order: see the module's docstring.

    Args:
        tokenizer: The tokenizer.
        state: The content of its tokenizer.json.
        texts: The texts that must be encoded as before.
        also: Further ids to keep.
    """
    vocab: dict[str, int] = state["model"]["vocab"]
    tokens = {id: token for token, id in vocab.items()}
    path = _merge_path(state["model"]["merges"], vocab)
    ids = {id for row in encoded(tokenizer, texts) for id in row}.union(also)
    for id in tuple(ids):
        ids |= path(tokens[id]) if id in tokens else set()
    ids |= {id for token, id in vocab.items() if len(token) == 1 or _is_byte(token)}
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
    special = set(tokenizer.all_special_tokens)
    ids |= {
        added["id"]
        for added in state["added_tokens"]
        if added["content"] in special or (added["special"] and added["content"] in template)
    }
    return sorted(ids)


def encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterable[list[int]]:
    """The ids of each text."""
    for start in range(0, len(texts), _SIZE):
        rows: list[list[int]] = tokenizer(list(texts[start : start + _SIZE]))["input_ids"]
        yield from rows


def _state(tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _untrimmable(name, f"{type(tokenizer).__name__} has no tokenizer.json")
    state: dict[str, Any] = json.loads(backend.to_str())
    if (kind := state["model"].get("type")) != "BPE":
        raise _untrimmable(name, f"its model is {kind}, not BPE")
    if state["model"].get("continuing_subword_prefix") or state["model"].get("end_of_word_suffix"):
        raise _untrimmable(name, "its tokens are marked at the beginning or end of a word")
    for processor in _flat(state.get("post_processor")):
        if processor["type"] not in _PROCESSORS:
            raise _untrimmable(name, f"its post-processor is {processor['type']}")
    return state


def _untrimmable(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name}: the vocabulary of its tokenizer cannot be trimmed ({why}). Prepare the model with its whole "
        f"vocabulary: {setting('vocabulary', 'whole')}."
    )


def _flat(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return [processor, *(each for part in processor.get("processors", ()) for each in _flat(part))]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _merge_path(merges: Sequence[Any], vocab: dict[str, int]) -> Callable[[str], set[int]]:
    """The function that gives the ids of a token and of every token on the way to it.

    Within a token the merges are those that the encoder applies to its letters alone: none of them crosses its ends.
    """
    ranks = {tuple(merge.split(" ", 1) if isinstance(merge, str) else merge): i for i, merge in enumerate(merges)}

    def path(token: str) -> set[int]:
        parts, found = list(token), {token}
        while len(parts) > 1:
            rank, at = min((ranks.get((a, b), len(ranks)), i) for i, (a, b) in enumerate(pairwise(parts)))
            if rank == len(ranks):
                break  # taken whole, with no merges (``ignore_merges``), or added
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found.add(parts[at])
        return {vocab[text] for text in found if text in vocab}

    return path


def _smaller_tokenizer(
    tokenizer: PreTrainedTokenizerBase, state: dict[str, Any], kept: list[int]
) -> PreTrainedTokenizerBase:
    new = {old: id for id, old in enumerate(kept)}
    model = dict(state["model"])
    vocab = {token: new[old] for token, old in model["vocab"].items() if old in new}
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    model |= {"vocab": vocab, "merges": [[a, b] for a, b in pairs if {a, b, a + b} <= vocab.keys()]}
    added = [{**token, "id": new[token["id"]]} for token in state["added_tokens"] if token["id"] in new]
    processing = copy.deepcopy(state.get("post_processor"))
    for processor in _flat(processing):
        for special in processor.get("special_tokens", {}).values():
            special["ids"] = [new[old] for old in special["ids"]]
    state = {**state, "model": model, "added_tokens": added, "post_processor": processing}
    state |= {"padding": None, "truncation": None}
    named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    others = [text for text in tokenizer.all_special_tokens if text not in named.values()]
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        additional_special_tokens=[text for text in others if tokenizer.convert_tokens_to_ids(text) in new],
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
        **named,
    )
    smaller.chat_template = tokenizer.chat_template
    return smaller


def _smaller_model(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """A model of the same configuration whose embeddings, and head, are the kept rows."""
    ids, new = torch.tensor(kept), {old: id for id, old in enumerate(kept)}
    config = copy.deepcopy(model.config)
    for owner in {id(each): each for each in (config, config.get_text_config())}.values():
        owner.vocab_size = len(kept)
        _renumber(owner, new)
    made: Any = type(model)(config)
    smaller: PreTrainedModel = made.eval()
    for weight in smaller.parameters():  # not ``to``, which rounds the buffers too: positions and Gemma's scale
        weight.data = weight.data.to(model.dtype)
    embeddings: Any = model.get_input_embeddings()
    vocabulary, own = embeddings.weight.shape[0], smaller.state_dict()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            rows = value.shape != own[key].shape and value.shape[0] == vocabulary
            own[key].copy_(value[ids] if rows else value)
    smaller.generation_config = copy.deepcopy(model.generation_config)
    _renumber(smaller.generation_config, new)
    smaller.tie_weights()
    return smaller


def _ends(model: PreTrainedModel) -> set[int]:
    """The ids that begin, end and pad a text, by the model's configurations."""
    found: set[int] = set()
    for owner in (model.config, model.config.get_text_config(), model.generation_config):
        for key in _CONFIG_IDS:
            value = getattr(owner, key, None)
            found.update(value if isinstance(value, list) else [] if value is None else [value])
    return {id for id in found if id >= 0}


def _renumber(config: Any, new: dict[int, int]) -> None:
    for key in _CONFIG_IDS:
        value = getattr(config, key, None)
        if isinstance(value, list):
            setattr(config, key, [new[old] for old in value if old in new])
        elif value is not None:
            setattr(config, key, new.get(value))


def largest_difference(
    model: PreTrainedModel, trimmed: PreTrainedModel, kept: list[int], rows: Iterable[list[int]]
) -> float:
    """The largest difference of a logit of a kept token, over all positions of the rows.

    Args:
        model: The model with the whole vocabulary.
        trimmed: The smaller one.
        kept: The old id of every new one.
        rows: Rows of old ids, all of them kept.
    """
    new, largest = {old: id for id, old in enumerate(kept)}, 0.0
    ids = torch.tensor(kept)
    with torch.no_grad():
        for row in rows:
            before = _logits(model, row)[:, ids]
            largest = max(largest, (before - _logits(trimmed, [new[old] for old in row])).abs().max().item())
    return largest


def _logits(model: nn.Module, row: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([row])).logits
    return logits[0].float()
