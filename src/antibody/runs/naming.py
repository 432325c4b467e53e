"""Which model a name means, besides what models/loading.py knows: the folder of a run stands for what it made."""

from pathlib import Path

from ..models.loading import PACKAGED, adapter_base, is_adapter, read_provenance, resolve


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
