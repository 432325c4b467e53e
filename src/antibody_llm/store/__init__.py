"""A run on disk: its folder, lock, result, environment and the fingerprints of what it was made from."""
