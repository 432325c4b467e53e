"""What a user can fix.

Every error here says what happened, where (file, line, field), and how to fix it. The command line prints it
without a traceback and ends with exit code 2; anything else that escapes is our fault and ends with 1.
"""

from .mentions import Spell, in_python, mentioned, pieces, spelled
from .text import cut, escaped


class AntibodyError(Exception):
    """Base of everything a user can fix. The message needs no context: what happened, where, how to fix it.

    It is one line of printable characters of bounded length, whatever the file or the library said that it repeats.
    What comes from a file is to be passed through ``text.quoted`` all the same, which cuts it there.
    Settings are written with ``mentions.setting``: ``str(error)`` spells them as keyword arguments, ``spelled`` as
    a surface asks.

    Args:
        message: What happened, where, and how to fix it.
        field: The setting that is at fault, such as ``harmful_data`` or ``options.tau``; by default the first one that
            the message mentions.
    """

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        self.message = pieces(message, escaped)
        """The message with its mentions as they are, for another error to repeat."""
        self.field = field or next(iter(mentioned(message)), None)
        super().__init__(self.spelled(in_python))

    def spelled(self, spell: Spell) -> str:
        """The message with every setting spelled as a surface's users write it."""
        return cut(spelled(self.message, spell))


class ConfigError(AntibodyError):
    """A setting, an option or a field of a configuration file is wrong."""


class DataError(AntibodyError):
    """A row, or a whole data file, cannot be used. Names file, line and field."""


class ModelError(AntibodyError):
    """A model, adapter or tokenizer cannot be loaded, or lacks what is asked of it."""


class TrainingError(AntibodyError):
    """Training had to stop, for example at a loss that is not a number. Names the step."""


class OutOfMemory(TrainingError):
    """A training step does not fit the memory. Names what makes it smaller."""


class EvaluationError(AntibodyError):
    """A measure cannot be reported: nothing to measure, or rows without a verdict."""


class OutputError(AntibodyError):
    """The output folder cannot be used as asked, or what was being saved did not fit."""
