"""Defences that train on the upload without learning the harm."""
