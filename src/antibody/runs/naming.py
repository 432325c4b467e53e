"""Which model a name means, besides what models/loading.py knows: the folder of a run stands for what it made."""

from hashlib import sha256
from pathlib import Path

from ..models.loading import (
    PACKAGED,
    TOKENIZER_FILES,
    WEIGHT_SUFFIXES,
    adapter_base,
    is_adapter,
    read_provenance,
    resolve,
)

TEMPLATE_FILES = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What else decides how text becomes tokens."""


def model_name(model: str | Path) -> str:
    """The model's name, or the folder in a run's folder that holds it."""
    folder = Path(model).expanduser()
    for inside, marker in (("adapter", "adapter_config.json"), ("model", "config.json")):
        if (folder / inside / marker).is_file() and not (folder / "config.json").is_file():
            return str(folder / inside)
    return str(model)


def from_lab(name: str) -> bool:
    """Whether a model is the lab's or descends from it: its rows, refusals and judge then fit."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        place = resolve(name)
        if name in PACKAGED or Path(place).parts[-4:-1] == ("antibody", "lab", "files"):
            return True
        name = adapter_base(name) if is_adapter(name) else str(read_provenance(place).get("base") or name)
    return False


def described_model(name: str) -> dict[str, str | None]:
    """For config.yaml: the name, where it was, and which weights were there."""
    return {"name": name, "place": resolve(name), "weights": _weights_fingerprint(name)}


def base_of(name: str, adapter: str | None) -> str | None:
    """The model before the alignment of ``name`` as ``load_model`` finds it where none is named; None: not known."""
    under = adapter_base(name) if is_adapter(name) else name
    named = read_provenance(resolve(under)).get("base")
    if named:
        return str(named)
    return under if adapter is not None or is_adapter(name) else None


def tokenizer_fingerprint(*names: str) -> str | None:
    """Tells when folders hold another tokenizer or chat template than they did (SHA-256, hex). None: none is here."""
    digest, found = sha256(), False
    for folder in map(Path, map(resolve, names)):
        for file in (folder / name for name in (*TOKENIZER_FILES, *TEMPLATE_FILES)):
            if file.is_file():
                content, found = file.read_bytes(), True
                digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest() if found else None


def _weights_fingerprint(name: str) -> str | None:
    """Tells when a folder holds other weights than it did: of each file its name, size and last MiB (SHA-256, hex).

    None for a Hub id, whose weights are not here yet. Whole files of a large model would take minutes to read.
    """
    folder = Path(resolve(name))
    if not folder.is_dir():
        return None
    digest = sha256()
    for file in sorted(path for path in folder.iterdir() if path.name.endswith(WEIGHT_SUFFIXES)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            opened.seek(max(0, size - 2**20))
            digest.update(opened.read())
    return digest.hexdigest()
