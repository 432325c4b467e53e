"""Inference in a process of its own: the API's process passes requests on and never imports torch."""
