"""What the model itself says of a row: evidence, before any training."""
