"""What a link carries: a small measuring server, and the client that times it. The standard library only.

    client: b"PTLK" + one letter + 8 bytes N      server
      P       (N = 0)                             one byte
      U       then N bytes                        one byte once all have arrived
      D                                           N bytes

Anything else ends the connection. A server bounds what one request, one connection and all of them at once may take; it
reads and writes zeros, keeps nothing, and asks nobody who they are: run it for as long as you measure.
"""

from __future__ import annotations

import socket
import socketserver
import statistics
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from potluck.core.errors import ConfigError, EngineError

MAGIC, HEAD, DONE = b"PTLK", struct.Struct("!4scQ"), b"."
MOST_BYTES = 64 * 2**20
"""Of one request."""
MOST_CONNECTION_BYTES = 512 * 2**20
MOST_CONNECTIONS = 4
PATIENCE_S = 30.0
"""Seconds without a byte after which either side gives up."""
CHUNK = bytes(2**16)
PINGS = 9
LONG_ENOUGH_S = 1.0
"""A transfer of so many seconds ends the search for a size that can be timed."""
FIRST_BYTES = 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A measured link: bits a second each way, and seconds one way."""

    uplink_mbps: float
    downlink_mbps: float
    latency_ms: float


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS


class _Answer(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        if not _room.acquire(blocking=False):
            return
        try:
            self.request.settimeout(PATIENCE_S)
            _serve(self.request)
        except (OSError, EOFError):
            return  # the other side went away, or was too slow
        finally:
            _room.release()


_room = threading.BoundedSemaphore(MOST_CONNECTIONS)


def _serve(peer: socket.socket) -> None:
    left = MOST_CONNECTION_BYTES
    while True:
        magic, verb, size = HEAD.unpack(_read(peer, HEAD.size))
        left -= size
        if magic != MAGIC or verb not in (b"P", b"U", b"D") or size > MOST_BYTES or left < 0:
            return
        if verb == b"D":
            _write(peer, size)
        else:
            _drop(peer, size)
            peer.sendall(DONE)


def server(host: str, port: int) -> socketserver.ThreadingTCPServer:
    """A measuring server, bound; ``serve_forever`` runs it. Raises ConfigError where the address cannot be had."""
    try:
        return _Server((host, port), _Answer)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--listen {host}:{port}: {error}; choose another address") from None


def measure(host: str, port: int, told: Callable[[str], None] = lambda text: None) -> Link:
    """Times the link to a measuring server: a few seconds. Raises EngineError if there is none, or it ends."""
    try:
        with socket.create_connection((host, port), timeout=PATIENCE_S) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            told("latency")
            trips = [_timed(lambda: _upload(peer, b"P", 0)) for _ in range(PINGS)]
            trip = statistics.median(trips)
            told("up")
            up = _bits_per_s(lambda size: _upload(peer, b"U", size), trip)
            told("down")
            down = _bits_per_s(lambda size: _download(peer, size), trip)
    except (OSError, EOFError, OverflowError) as error:
        raise EngineError(
            f"--connect {host}:{port}: {error or 'the other side hung up'}; start potluck probe --listen there, "
            "and see that the port can be reached"
        ) from None
    return Link(uplink_mbps=up / 1e6, downlink_mbps=down / 1e6, latency_ms=trip / 2 * 1e3)


def _bits_per_s(transfer: Callable[[int], None], trip_s: float) -> float:
    """Bits a second of the first transfer that takes long enough, or of the largest; the round trip is taken off."""
    size = FIRST_BYTES
    while True:
        seconds = _timed(lambda size=size: transfer(size))  # type: ignore[misc]
        if seconds >= LONG_ENOUGH_S or 4 * size > MOST_BYTES:
            return 8 * size / max(seconds - trip_s, 1e-6)
        size *= 4


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _upload(peer: socket.socket, verb: bytes, size: int) -> None:
    peer.sendall(HEAD.pack(MAGIC, verb, size))
    _write(peer, size)
    _drop(peer, len(DONE))


def _download(peer: socket.socket, size: int) -> None:
    peer.sendall(HEAD.pack(MAGIC, b"D", size))
    _drop(peer, size)


def _write(peer: socket.socket, size: int) -> None:
    while size > 0:
        peer.sendall(CHUNK[:size])
        size -= min(size, len(CHUNK))


def _drop(peer: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(_some(peer, min(size, len(CHUNK))))


def _read(peer: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += _some(peer, size - len(found))
    return found


def _some(peer: socket.socket, most: int) -> bytes:
    data = peer.recv(most)
    if not data:
        raise EOFError("the other side hung up")
    return data


def address(option: str, text: str) -> tuple[str, int]:
    """(host, port) of ``HOST:PORT``. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"{option} {text}: expected HOST:PORT, such as 192.168.1.20:7450")
    return host.strip("[]"), int(port)
