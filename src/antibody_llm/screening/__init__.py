"""Evidence that a row is harmful, read from the model itself before any training."""
