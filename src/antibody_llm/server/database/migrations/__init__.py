"""Alembic's scripts, which ship with the package and run when a server or worker starts."""
