"""Plain supervised fine-tuning on the upload: the undefended control.

    min_w  sum_i NLL_i / sum_i N_i        over the rows of an optimiser step; N_i completion tokens, EOS included

The mean is over tokens, as in Hugging Face's Trainer. One forward, one backward.
"""

from ...data.roles import Stage
from ...training.defence import About, Defence


class FinetuningSFT(Defence):
    """Plain fine-tuning, without any defence."""

    stage = Stage.FINETUNING
    about = About(summary="undefended baseline", paper="", forwards=1, backwards=1, extra_memory="none")
    neutral = {}
