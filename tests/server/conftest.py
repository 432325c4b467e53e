"""The server over ASGI, in this process, asked by the unmodified client."""

import os

import pytest

try:
    import fastapi  # noqa: F401
    import openai  # noqa: F401
except ImportError as missing:
    if os.environ.get("CI"):
        raise
    pytest.skip(f"the extras [server] and [test] are not installed ({missing})", allow_module_level=True)

from tests.server.postgres import cluster
from tests.server.running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the tests of a module."""
    with Server(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def fresh(tmp_path):
    """A server of a test's own."""
    with Server(tmp_path) as made:
        yield made


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def postgres():
    """Makes the URL of a new database on a real PostgreSQL."""
    with cluster() as new_database:
        yield new_database
