"""Settings of a defence found for a model: rows divided, uploads simulated, options searched, the result reported."""

from .calibrate import Calibrated, calibrate

__all__ = ["Calibrated", "calibrate"]
