"""Defences that train on the upload without learning its harm."""
