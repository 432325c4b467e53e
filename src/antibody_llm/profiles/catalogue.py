"""Which profile a model has."""

from collections.abc import Iterator

from ..models.names import adapter_base, is_adapter, read_provenance, resolve
from .lab import LabProfile, in_lab
from .protocol import Profile


def profile_of(model: str) -> Profile:
    """The profile of a model: that of the model which it was made from.

    Args:
        model: A name as ``models.loading.load_model`` takes it.
    """
    return LabProfile() if in_lab(lineage(model)) else Profile()


def lineage(model: str) -> Iterator[str]:
    """The model, the base of its adapter or the model before its alignment, and so on to the first one."""
    seen: set[str] = set()
    while model not in seen:
        seen.add(model)
        yield model
        place = resolve(model)
        model = adapter_base(model) if is_adapter(model) else str(read_provenance(place).get("base") or model)
