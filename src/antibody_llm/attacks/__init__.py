"""Attacks on fine-tuning as a service: rows in, rows out, and how the result is asked. One file each."""
