"""Worlds on disk: their rows as files, and their models trained from nothing by the verbs of ``runs``."""
