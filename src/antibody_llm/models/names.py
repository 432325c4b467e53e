"""What the name of a model or an adapter means: a model of the package, a folder, or a Hub id."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..errors import ModelError
from ..mentions import setting
from ..text import quoted
from .checks import TOKENIZER_FILES, is_folder, not_loaded
from .files import field, first_line, read_json
from .stored_adapter import read_adapter_config

PACKAGED = ("lab", "lab-aligned")
PROVENANCE = "antibody.json"
ALIGNED = "aligned"
"""Entry of a fine-tuned model's provenance: the model that the first fine-tuning of its line started from."""
ALIGNED_WEIGHTS = "aligned_weights"
"""Entry beside it: the fingerprint that its weights had then."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(name: str) -> str:
    """Where ``name`` really is: an absolute folder, or a Hub id as it is.

    Raises:
        ModelError: there is no such folder, and it cannot be a Hub id.
    """
    if name in PACKAGED:
        folder = Path(str(files("antibody_llm"))) / "lab" / "files" / name
        if not folder.is_dir():
            raise ModelError(f"{name}: this installation has no lab model. Make it with: antibody lab build")
        return str(folder)
    if not name:
        raise ModelError("'': no model is named. Give a model's folder, a Hub id (OWNER/NAME), or 'lab'.")
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return str(path.resolve())
        if path.exists():
            raise ModelError(f"{name}: a file, not a model's folder. Name the folder it is in.")
    except (OSError, ValueError, RuntimeError) as error:  # too long, not ours to read, NUL, a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"{quoted(name)}: cannot be looked up ({reason}). Give a model's folder.") from error
    if not HUB_ID.fullmatch(name):
        raise ModelError(f"{quoted(name)}: no such folder. Give a model's folder, a Hub id (OWNER/NAME), or 'lab'.")
    return name


def with_kind(name: str) -> str:
    """A model's name for an error about what it brings: a mistyped folder is taken for a Hub id."""
    return name if name in PACKAGED or is_folder(name) else f"{name} (no folder here, so a Hub id)"


def is_adapter(name: str) -> bool:
    """Whether ``name`` is a folder that holds an adapter rather than a whole model."""
    folder = Path(resolve(name))
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def adapter_base(adapter: str) -> str:
    """The model under ``adapter``: what its configuration names, or else, where that is gone, its provenance.

    Raises:
        ModelError: neither can be found.
    """
    folder = adapter_folder(adapter)
    named = [read_adapter_config(folder)["base_model_name_or_path"], read_provenance(str(folder)).get("base")]
    candidates: list[str] = [name for name in named if name]
    for name in candidates:
        # An absolute path that is gone can look like nothing else; a Hub id is believed.
        if name in PACKAGED or is_folder(name) or HUB_ID.fullmatch(name):
            return name
    raise ModelError(
        f"{adapter}: the adapter's base is not found ({', '.join(map(quoted, candidates)) or 'none is named'}). "
        f"Give the base as {setting('model')} and this folder as {setting('adapter')}."
    )


def adapter_folder(adapter: str) -> Path:
    """The folder that holds ``adapter``, downloaded where it is a Hub id: its files are read before PEFT reads them."""
    place = resolve(adapter)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(
            snapshot_download(place, allow_patterns=["adapter_*", PROVENANCE, "*token*", "*.jinja", *TOKENIZER_FILES])
        )
    except Exception as error:  # the Hub's client raises many kinds
        raise not_loaded(adapter, "adapter", error) from error


def read_provenance(folder: str) -> dict[str, Any]:
    """What ``antibody.json`` in a model's folder says of where the model came from; empty where there is none.

    Entries that are null are left out. ``base`` and ``aligned`` are texts, ``deployment`` an object of texts.

    Raises:
        ModelError: it cannot be read, or one of these is something else.
    """
    path = Path(folder) / PROVENANCE
    if not path.is_file():
        return {}
    entries = {key: value for key, value in read_json(path).items() if value is not None}
    for key in ("base", ALIGNED):
        field(entries, path, key, str)
    deployment = field(entries, path, "deployment", dict)
    for key in deployment or {}:
        if field(deployment, path, key, str) is None:
            raise ModelError(f"{path}: {quoted(key)} of deployment is null, not a text. Remove it.")
    return entries


def check_base(adapter: str, folder: Path, name: str) -> None:
    """Refuse an adapter trained on another model: it would load wherever the shapes agree."""
    named = read_adapter_config(folder)["base_model_name_or_path"]
    # A base that is gone, or a folder beside a Hub id, may well be the same model in another place.
    if not named or is_folder(named) != Path(resolve(name)).is_dir():
        return
    if resolve(named) != resolve(name):
        shown = quoted(named).strip("'")
        raise ModelError(
            f"{adapter}: the adapter was trained on {shown}, not on {name}. Give {setting('model', shown)}."
        )
