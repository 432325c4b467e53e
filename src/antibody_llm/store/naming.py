"""Which model a name means, besides what models/names.py knows: the folder of a run means what it made."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..mentions import setting
from ..models.checks import TOKENIZER_FILES, WEIGHT_SUFFIXES
from ..models.names import ALIGNED, adapter_base, is_adapter, read_provenance, resolve
from ..screening.anchors import ANCHORS
from .digest import file_digest

TEMPLATE_FILES = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What else decides how text becomes tokens."""
SETTINGS = (".json", ".safetensors")
"""How the further files end that decide what a model does; the only weights among them are the anchors."""
BASE_WEIGHTS = "base_weights"
"""Entry of an adapter's antibody.json: fingerprint of the base that it was trained on."""


def model_name(model: str | Path) -> str:
    """The model's name, or the folder in a run's folder that holds it."""
    folder = Path(model).expanduser()
    for inside, marker in (("adapter", "adapter_config.json"), ("model", "config.json")):
        if (folder / inside / marker).is_file() and not (folder / "config.json").is_file():
            return str(folder / inside)
    return str(model)


def described_model(name: str, *, on: str | None = None) -> dict[str, Any]:
    """The model as config.yaml has it: its name, its place, and fingerprints of all that decides what a run does.

    Args:
        name: The model, or an adapter.
        on: The model under the adapter, where it is given beside it.

    Raises:
        ModelError: an adapter's base is not the model that it was trained on, though it has its name.
    """
    under = on or (adapter_base(name) if is_adapter(name) else None)
    if under is not None:
        _refuse_another_base(name, under)
    return {
        "name": name,
        "place": resolve(name),
        "weights": weights_fingerprint(name),
        "tokenizer": tokenizer_fingerprint(name),
        "settings": _settings_fingerprint(name),
        "under": None if under is None or on is not None else described_model(under),
    }


def _refuse_another_base(adapter: str, base: str) -> None:
    """The adapter's folder keeps the fingerprint of the base it was trained on, which a later run may have replaced."""
    trained_on = read_provenance(resolve(adapter)).get(BASE_WEIGHTS)
    found = weights_fingerprint(base)
    if trained_on is not None and found is not None and trained_on != found:
        raise ModelError(
            f"{adapter}: the adapter was trained on {base} as it was then, and other weights are there now: they were "
            f"replaced, by a run with {setting('overwrite', 'True')} perhaps. Train the adapter again, or put the "
            "earlier weights back."
        )


def base_of(name: str, adapter: str | None) -> str | None:
    """The model before the alignment of ``name`` as ``load_model`` finds it where none is named; None: not known."""
    under = adapter_base(name) if is_adapter(name) else name
    named = read_provenance(resolve(under)).get("base")
    if named:
        return str(named)
    return under if adapter is not None or is_adapter(name) else None


def aligned_of(name: str, adapter: str | None) -> str | None:
    """The model that the fine-tuning of ``name``, or of its adapter, started from, as that says; None: not known."""
    named = read_provenance(resolve(adapter or name)).get(ALIGNED)
    return None if named is None else str(named)


def tokenizer_fingerprint(name: str) -> str | None:
    """SHA-256 of a folder's tokenizer and chat template. None: there is none, or they are not here yet."""
    folder = Path(resolve(name))
    named = [folder / file for file in (*TOKENIZER_FILES, *TEMPLATE_FILES)]
    return _fingerprint([*named, *sorted((folder / "additional_chat_templates").glob("*.jinja"))])


def weights_fingerprint(name: str) -> str | None:
    """SHA-256 of a folder's weights. None for a Hub id: they are not here yet."""
    return _fingerprint(_weights(Path(resolve(name))))


def _settings_fingerprint(name: str) -> str | None:
    """Fingerprint of the rest: architecture, generation, the adapter's settings, our own note, and the anchors."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return None
    others = set(_weights(folder)) | {folder / file for file in (*TOKENIZER_FILES, *TEMPLATE_FILES)}
    return _fingerprint([file for file in sorted(folder.iterdir()) if file.suffix in SETTINGS and file not in others])


def _weights(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.name.endswith(WEIGHT_SUFFIXES) and file.name != ANCHORS)


def _fingerprint(files: Iterable[Path]) -> str | None:
    """The name and the whole content of every file that is there; None where none is."""
    digests = [f"{file.name} {file_digest(file)}\n" for file in files if file.is_file()]
    return sha256("".join(digests).encode()).hexdigest() if digests else None
