"""Defences that make the model resistant before any user arrives."""
