"""Where the layers of a decoder are: Llama, Qwen, Mistral, Gemma and GPT-NeoX layouts."""

from torch import nn

from ..errors import ModelError
from ..mentions import setting
from ..text import quoted

_STACKS = ("layers", "h", "blocks")
_ATTENTION = ("self_attn", "attention", "attn")
_MLP = ("mlp", "feed_forward")
_NORM = ("norm", "final_layer_norm", "ln_f")


def _bare(model: nn.Module) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def _backbone(model: nn.Module) -> nn.Module:
    bare = _bare(model)
    return getattr(bare, getattr(bare, "base_model_prefix", "model"), bare)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers from the first to the last, under a PEFT adapter too.

    Raises:
        ModelError: this architecture keeps them elsewhere.
    """
    bare, backbone = _bare(model), _backbone(model)
    for name in _STACKS:
        stack = getattr(backbone, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack):
            return list(stack)
    raise ModelError(
        f"{type(bare).__name__} keeps its decoder layers in none of {', '.join(_STACKS)}. Defences that look into "
        "layers know the Llama, Qwen, Mistral, Gemma and GPT-NeoX layouts."
    )


def context_length(model: nn.Module) -> int | None:
    """How many tokens the model reads at once; None where its configuration does not say.

    Raises:
        ModelError: the configuration says something else than a number of tokens.
    """
    length = getattr(_bare(model).config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise ModelError(f"config.json: max_position_embeddings is {quoted(length)}: it must be a number of tokens.")
    return length


def require_same_shape(model: nn.Module, other: nn.Module, *, named: str, num_tokens: int, key: str = "base") -> None:
    """Check that two models can be compared layer by layer, on ids of the first one's tokenizer.

    Args:
        model: The one that is used.
        other: The one that it is compared with.
        named: What the user calls the other one.
        num_tokens: How many tokens the tokenizer has.
        key: The setting that names the other one: ``base``, or ``aligned`` for the one that fine-tuning started from.

    Raises:
        ModelError: hidden size or number of layers differ, or the other one has too few embeddings.
    """
    here, there = (_bare(m).config.get_text_config() for m in (model, other))  # type: ignore[union-attr, operator]
    before = "before its alignment" if key == "base" else "that fine-tuning started from"
    wrong = f"so that it is not the model {before}. Name that one as {setting(key)}."
    for field in ("model_type", "hidden_size", "num_hidden_layers"):
        ours, its = getattr(here, field, None), getattr(there, field, None)
        if ours != its:
            raise ModelError(f"{named}: its {field} is {quoted(its)}, that of the model {quoted(ours)}, {wrong}")
    embeddings = _bare(other).get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if embeddings < num_tokens:
        raise ModelError(f"{named}: it has {embeddings} embeddings for the tokenizer's {num_tokens} tokens, {wrong}")


def final_norm(model: nn.Module) -> nn.Module:
    """The norm between the last decoder layer and the unembedding, under a PEFT adapter too."""
    return _part(_backbone(model), _NORM, "final norm")


def attention_of(layer: nn.Module) -> nn.Module:
    """The self-attention of a decoder layer (its output is after the output projection, before the residual sum)."""
    return _part(layer, _ATTENTION, "self-attention")


def mlp_of(layer: nn.Module) -> nn.Module:
    """The feed-forward block of a decoder layer."""
    return _part(layer, _MLP, "feed-forward block")


def _part(layer: nn.Module, names: tuple[str, ...], what: str) -> nn.Module:
    for name in names:
        part = getattr(layer, name, None)
        if isinstance(part, nn.Module):
            return part
    raise ModelError(
        f"{type(layer).__name__} keeps its {what} under none of {', '.join(names)}. Defences that look into layers "
        "know the Llama, Qwen, Mistral, Gemma and GPT-NeoX layouts."
    )
