"""The engine: one trainer, many defences. The only room that imports TRL."""
