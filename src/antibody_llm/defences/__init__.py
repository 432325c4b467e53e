"""One file per paper and stage, over shared primitives; they never import each other."""
