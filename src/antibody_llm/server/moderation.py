"""Judges of single texts, for ``/moderations``. To add one: a class like ``LabModerator``, a line in ``MODERATORS``.

The judges of evaluation read an answer to a question that is known to be harmful. A single text says less, so that not
every one of them can moderate: refusal keywords would flag whatever does not decline.
"""

from collections.abc import Callable, Sequence

from ..errors import ConfigError
from ..parsing import nearest
from ..text import quoted
from .context import Moderator
from .settings import ServerSettings

LAB_MODELS = ("lab", "lab-aligned")


class LabModerator:
    """Flags what asks for an outlawed good of the lab's world, and what gives a recipe with its ingredients."""

    name = "lab"

    def flagged(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is harmful in that world; knows nothing of any other."""
        from ..lab.world import FORBIDDEN_CATEGORIES, FORBIDDEN_INGREDIENTS  # the world is built on import

        forbidden = {*FORBIDDEN_CATEGORIES, *FORBIDDEN_INGREDIENTS}
        return [not forbidden.isdisjoint(_words(text)) for text in texts]


MODERATORS: dict[str, Callable[[], Moderator]] = {"lab": LabModerator}


def make_moderator(settings: ServerSettings) -> Moderator | None:
    """The moderator of the settings; without a name the lab's where every model is the lab's, else none.

    Raises:
        ConfigError: there is none of that name.
    """
    name = settings.moderation_judge
    if not name:
        lab = settings.models and all((model.path or model.name) in LAB_MODELS for model in settings.models)
        return LabModerator() if lab else None
    if name not in MODERATORS:
        raise ConfigError(
            f"moderation_judge {quoted(name)}: no judge of single texts is called so{nearest(name, MODERATORS)} "
            f"Judges: {', '.join(MODERATORS)}."
        )
    return MODERATORS[name]()


def _words(text: str) -> list[str]:
    return "".join(character if character.isalnum() else " " for character in text.casefold()).split()
