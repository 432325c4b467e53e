"""Tables, the engine they live in, and their migrations."""
