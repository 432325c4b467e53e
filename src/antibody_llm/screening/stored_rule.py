"""What a model's anchors say about evidence of tokens, read once for each model: every later job on it reads the file.

Reading it is two passes over answers composed of the anchors, longer than reading an upload. It depends on nothing of
the upload. A file in the cache's folder (cache.py) is named by the SHA-256 of all that it does depend on: both models'
weights, anchors and refusals, and how the models compute. What cannot be read is read from the model again.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import OutputError
from ..events import warn
from ..files import whole
from ..likelihood.ranks import from_first
from ..likelihood.reader import ModelReader
from ..primitives.mixture import LogRatio
from ..primitives.shards import is_sharded
from .anchors import Anchors
from .cache import cache_folder, digest_of, row_digest, weights_identity
from .token_evidence import TokenProbe, TokenRule, read_token_rule

FOLDER = "token-rules"
VERSION = "1"
"""To be raised with every change of what ``read_token_rule`` comes to."""


def stored_token_rule(reader: ModelReader, anchors: Anchors) -> TokenRule:
    """The rule of ``read_token_rule``, from the cache where this model's was read before.

    A model that is sharded among ranks is always read.

    Args:
        reader: The aligned model, the one before it, refusals.
        anchors: The labelled rows stored with the model.

    Raises:
        ModelError: there is no model before alignment, or too few anchors share a template.
    """
    if any(is_sharded(parameter) for parameter in reader.model.parameters()):
        return read_token_rule(reader, anchors)
    file = cache_folder() / FOLDER / f"{digest_of(_parts(reader, anchors)).hex()}.safetensors"
    # All ranks or none: reading is shared among them. Rank 0's file is the one that counts.
    found = from_first(lambda: _stored(file))
    if found is not None:
        return found
    rule = read_token_rule(reader, anchors)
    from_first(lambda: _store(file, rule))
    return rule


def _parts(reader: ModelReader, anchors: Anchors) -> Iterator[str | bytes]:
    """All that the rule depends on."""
    yield VERSION
    yield weights_identity(reader.model)
    with reader.before_alignment() as model:
        yield b"adapter off" if model is reader.model else weights_identity(model)
    yield from reader.refusals.texts
    yield repr(sorted((str(kind), ids) for kind, ids in reader.refusals.ids.items()))
    yield str(anchors.num_harmful)
    yield from (row_digest(row) for row in anchors.rows)
    device = reader.device.type
    with reader.autocast():
        cast = torch.is_autocast_enabled(device)
        yield f"{device} {torch.get_autocast_dtype(device) if cast else 'as it is'} {reader.batch_size}"


def _stored(file: Path) -> TokenRule | None:
    """The rule in a file; None where there is none, or a damaged one."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (not a mapping)
        token, row = (LogRatio(tensors[f"{name}.slope"], float(tensors[f"{name}.bias"])) for name in ("token", "row"))
        return TokenRule(
            TokenProbe(tensors["direction"], float(tensors["offset"])),
            token,
            row,
            auroc=float(tensors["auroc"]),
            judges=(tensors["harmful"], tensors["harmless"]),
        )
    except (SafetensorError, LookupError, ValueError, RuntimeError, OSError) as error:
        warn(f"{file}: cannot be read ({error}), and the anchors' answers are read again.")
        return None


def _store(file: Path, rule: TokenRule) -> None:
    """Write the rule; where that fails, say so and go on without."""
    tensors: dict[str, Tensor] = {"direction": rule.probe.direction, "offset": _number(rule.probe.offset)}
    for name, ratio in (("token", rule.token), ("row", rule.row)):
        tensors |= {f"{name}.slope": ratio.slope, f"{name}.bias": _number(ratio.bias)}
    tensors |= {"auroc": _number(rule.auroc), "harmful": rule.judges[0], "harmless": rule.judges[1]}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as temporary:
            temporary.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
    except (OutputError, OSError) as error:
        warn(
            f"{file}: cannot be written ({error}), so that every job reads the anchors' answers again. Set "
            "ANTIBODY_CACHE to another folder."
        )


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
