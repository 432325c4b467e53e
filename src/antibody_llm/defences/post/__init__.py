"""Repairs after the user's fine-tuning."""
