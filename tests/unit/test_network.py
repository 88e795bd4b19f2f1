"""The guard that keeps the test process on loopback."""

from __future__ import annotations

import socket

import pytest

from tests import network


@pytest.mark.parametrize("host", ["192.0.2.1", "198.51.100.7"])
def test_a_connection_beyond_loopback_is_refused_and_noted(host: str) -> None:
    with socket.socket() as outgoing, pytest.raises(network.BeyondLoopback):
        outgoing.connect((host, 443))

    assert network.refused == [f"socket.connect {host}"]
    network.refused.clear()


def test_a_name_is_not_even_looked_up() -> None:
    with pytest.raises(network.BeyondLoopback):
        socket.getaddrinfo("example.com", 443)

    assert network.refused == ["socket.getaddrinfo example.com"]
    network.refused.clear()


def test_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert client.getpeername() == server.getsockname()
