"""The verbs as functions, and the folders that runs leave: the Python API.

from antibody_llm.runs import align, evaluate, finetune
aligned = align("lab", output="runs/aligned")
tuned = finetune(aligned.model, output="runs/tuned", poison_ratio=0.2)
measured = evaluate(tuned.model, output="runs/measured")
print(measured.metrics["harmful_score"])
"""

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
