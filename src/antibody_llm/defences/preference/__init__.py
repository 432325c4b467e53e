"""Defences of training on pairs (DPO): which pairs are trained on. The step is that of training/preference.py."""
