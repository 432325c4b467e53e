"""Load and save models, adapters and tokenizers."""
