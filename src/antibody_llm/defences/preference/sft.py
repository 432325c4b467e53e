"""No defence under DPO: every pair is trained on. It has the undefended baseline's name, ``sft``, at every method."""

from ...training.defence import About, PairDefence


class PreferenceSFT(PairDefence):
    """Every pair of the upload."""

    about = About(summary="undefended baseline", paper="", forwards=2, backwards=1, extra_memory="two numbers per pair")
