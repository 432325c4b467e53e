"""The precision of float32 matrix products, for as long as a model trains."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def float32_products(tf32: bool | None) -> Iterator[None]:
    """Compute float32 matrix products inside in TF32 or in full precision, and restore the setting afterwards.

    ``SFTConfig(tf32=...)`` sets this for the whole process, through a function whose results transformers caches: after
    a configuration with ``tf32=False`` and one with ``tf32=True``, a third one with ``False`` leaves TF32 on. We saw
    this on a GPU: a float32 run after a TF32 one gave every bit of the TF32 one.

    Args:
        tf32: The field of the configuration; None changes nothing.
    """
    if tf32 is None:
        yield
        return
    backends: Any = torch.backends  # its module sets the attribute on itself as a property, which mypy does not see
    before = backends.fp32_precision
    backends.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        backends.fp32_precision = before
