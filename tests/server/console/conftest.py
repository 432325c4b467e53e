"""One server for all tests of the console that change nothing of each other's."""

import pytest


@pytest.fixture(scope="module")
def demo(server):
    from tests.server.console.demo import Demo

    return Demo(server)


@pytest.fixture(scope="module")
def customer(demo):
    """Project and key of a customer."""
    return demo.server.tenant("customers")


@pytest.fixture(scope="module")
def operator(server):
    from tests.server.console.demo import Browser

    return Browser(server, server.key)


@pytest.fixture(scope="module")
def theirs(server, customer):
    """The customer, signed in."""
    from tests.server.console.demo import Browser

    return Browser(server, customer[1])
