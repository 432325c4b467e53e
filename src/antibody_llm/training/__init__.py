"""The engine: one trainer for many defences."""
