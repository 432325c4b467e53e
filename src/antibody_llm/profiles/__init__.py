"""A model's defaults: rows by role, refusals, calibration, and the names of judges and answer rules."""

from .catalogue import profile_of
from .protocol import Choice, Profile

__all__ = ["Choice", "Profile", "profile_of"]
