from tests.cli.conftest import antibody

__all__ = ["antibody"]
