"""The server over ASGI, in this process, asked by the unmodified client."""

import os

import pytest

try:
    import fastapi  # noqa: F401
    import openai  # noqa: F401
except ImportError as missing:
    if os.environ.get("CI"):
        raise
    REASON = f"the extras [server] and [test] are not installed ({missing})"

    class Missing(pytest.Module):
        """A module whose tests cannot run here."""

        def collect(self):
            pytest.skip(REASON, allow_module_level=True)

    def pytest_pycollect_makemodule(module_path, parent):
        return Missing.from_parent(parent, path=module_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for the tests of a module."""
    from tests.server.running import Server

    with Server(tmp_path_factory.mktemp("server")) as made:
        yield made


@pytest.fixture
def fresh(tmp_path):
    """A server of a test's own."""
    from tests.server.running import Server

    with Server(tmp_path) as made:
        yield made


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def postgres():
    """Makes the URL of a new database on a real PostgreSQL."""
    from tests.server.postgres import cluster

    with cluster() as new_database:
        yield new_database
