"""antibody: safe fine-tuning as a service."""

__version__ = "0.1.0.dev0"
