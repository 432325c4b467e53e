"""What a process of the pool has imported before its first job: importing it costs seconds, a fork nothing."""

from ...runs import align, evaluate, finetune, repair

__all__ = ["align", "evaluate", "finetune", "repair"]
