"""The profile of a model, by its name."""

from collections.abc import Iterator

from ..models.names import adapter_base, is_adapter, read_provenance, resolve
from .english import EnglishProfile
from .lab import LabProfile, in_lab
from .protocol import Profile

MARK = "profile"
"""The entry of a model's provenance that names its profile, where that is not seen from the model's name."""


def profile_of(model: str) -> Profile:
    """The profile of a model, which is that of the model it descends from.

    Args:
        model: A name that ``models.loading.load_model`` accepts.
    """
    ancestors = tuple(lineage(model))
    if in_lab(ancestors):
        return LabProfile()
    marked = (read_provenance(resolve(name)).get(MARK) for name in ancestors)
    return EnglishProfile() if EnglishProfile.name in marked else Profile()


def lineage(model: str) -> Iterator[str]:
    """Yield the model, then the base of its adapter or the model before its alignment, and so on to the first one."""
    seen: set[str] = set()
    while model not in seen:
        seen.add(model)
        yield model
        place = resolve(model)
        model = adapter_base(model) if is_adapter(model) else str(read_provenance(place).get("base") or model)
