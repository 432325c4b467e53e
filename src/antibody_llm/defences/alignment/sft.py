"""Plain safety alignment: supervised fine-tuning on prompts with refusals (and benign rows).

    min_w  sum_i NLL_i / sum_i N_i        over the rows of an optimiser step; N_i completion tokens, EOS included

This is the baseline of every alignment-stage paper. One forward, one backward.
"""

from ...data.roles import Stage
from ...training.defence import About, Defence


class AlignmentSFT(Defence):
    """Plain fine-tuning on the alignment rows."""

    stage = Stage.ALIGNMENT
    about = About(summary="refusals learnt plainly", paper="", forwards=1, backwards=1, extra_memory="none")
    neutral = {}
