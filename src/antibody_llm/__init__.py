"""Safe fine-tuning as a service: align, fine-tune under attack, measure.

Everything public is here, and is loaded when it is first used: importing the package brings no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.roles import Role, Stage
    from .evaluation.evaluate import rejudge
    from .runs.align import align
    from .runs.evaluate import evaluate
    from .runs.finetune import finetune
    from .runs.repair import repair
    from .runs.screen import screen
    from .training.defence import Defence
    from .training.step import StepContext, StepResult

__version__ = "0.1.0"
__all__ = [
    "Defence",
    "Role",
    "Stage",
    "StepContext",
    "StepResult",
    "align",
    "evaluate",
    "finetune",
    "rejudge",
    "repair",
    "screen",
]

_ROOMS = {name: f"runs.{name}" for name in ("align", "evaluate", "finetune", "repair", "screen")}
_ROOMS |= dict.fromkeys(("Role", "Stage"), "data.roles")
_ROOMS |= {"Defence": "training.defence"} | dict.fromkeys(("StepContext", "StepResult"), "training.step")
_ROOMS |= {"rejudge": "evaluation.evaluate"}


def __getattr__(name: str) -> Any:
    """A public name, from the room where it lives."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
