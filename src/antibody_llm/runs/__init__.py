"""The verbs as functions of their settings: the Python API. They know neither a terminal nor any single model."""

from ..screening.result import ScreenResult
from ..store.result import RunResult
from .align import align
from .anchors import AnchorsResult, anchors
from .convert import ConvertResult, convert
from .evaluate import evaluate
from .finetune import finetune
from .repair import repair
from .screen import screen

__all__ = [
    "AnchorsResult",
    "ConvertResult",
    "RunResult",
    "ScreenResult",
    "align",
    "anchors",
    "convert",
    "evaluate",
    "finetune",
    "repair",
    "screen",
]
