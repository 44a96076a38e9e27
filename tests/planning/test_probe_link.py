"""The measuring server: it measures, and it stays within its limits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from potluck.core.errors import ConfigError, EngineError
from potluck.planning import probe_link
from potluck.planning.probe_link import HEAD, MAGIC, MOST_BYTES, MOST_CONNECTION_BYTES, MOST_CONNECTIONS

Address = tuple[str, int]


@pytest.fixture
def there() -> Iterator[Address]:
    with probe_link.server("127.0.0.1", 0) as serving:
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        host, port = serving.server_address[:2]
        yield str(host), int(port)
        serving.shutdown()


def test_the_loopback_is_fast(there: Address) -> None:
    told: list[str] = []
    link = probe_link.measure(*there, told.append)
    assert told == ["latency", "up", "down"]
    assert link.uplink_mbps > 20
    assert link.downlink_mbps > 20
    assert 0 < link.latency_ms < 1000


def ended(peer: socket.socket) -> bool:
    """Whether the server hung up without an answer."""
    peer.settimeout(20)
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD.pack(b"NOPE", b"P", 0),
        HEAD.pack(MAGIC, b"X", 0),
        HEAD.pack(MAGIC, b"D", MOST_BYTES + 1),
        HEAD.pack(MAGIC, b"U", 2**64 - 1),
    ],
)
def test_anything_else_ends_the_connection(there: Address, head: bytes) -> None:
    with socket.create_connection(there) as peer:
        peer.sendall(head)
        assert ended(peer)


def test_a_connection_has_its_fill(there: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_BYTES < MOST_CONNECTION_BYTES
    monkeypatch.setattr(probe_link, "MOST_CONNECTION_BYTES", 1000)
    with socket.create_connection(there) as peer:
        peer.sendall(HEAD.pack(MAGIC, b"U", 900) + bytes(900))
        assert peer.recv(1) == b"."
        peer.sendall(HEAD.pack(MAGIC, b"D", 101))
        assert ended(peer)


def test_so_many_at_once(there: Address) -> None:
    peers = [socket.create_connection(there) for _ in range(MOST_CONNECTIONS)]
    try:
        for peer in peers:
            peer.sendall(HEAD.pack(MAGIC, b"P", 0))
            assert peer.recv(1) == b"."
        with socket.create_connection(there) as late:
            assert ended(late)
    finally:
        for peer in peers:
            peer.close()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        with pytest.raises(ConfigError, match="choose another address"):
            probe_link.server(host, port)
    with pytest.raises(EngineError, match="potluck probe --listen"):
        probe_link.measure("127.0.0.1", port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:x", "host:70000", "host:-1"])
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        probe_link.address("--connect", text)
    assert probe_link.address("--connect", "[::1]:80") == ("::1", 80)
