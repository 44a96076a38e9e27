"""Hosts that are network namespaces on a switch, each with a cable of its own rate. Needs root and iproute2.

Everything happens inside the namespaces, which are removed in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


def ip(*words: str) -> str:
    """What ``ip`` answers."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Hosts 0, 1, ... on one switch. ``rates``: of each one's cable, such as ``1mbit``; empty: as fast as it goes."""

    prefix: str
    rates: Sequence[str]

    @property
    def space(self) -> str:
        """The namespace of the switch itself; the cable of host N ends in its ``portN``."""
        return f"{self.prefix}-s"

    def host(self, number: int) -> str:
        """The namespace of a host."""
        return f"{self.prefix}-{number}"

    def address(self, number: int) -> str:
        """The address of a host, inside the namespaces only."""
        return f"10.77.0.{number + 1}"

    def plug(self, number: int, plugged: bool) -> None:
        """Pulls a host's cable, or plugs it in."""
        ip("-n", self.space, "link", "set", f"port{number}", "up" if plugged else "down")

    def counters(self, number: int) -> tuple[int, int]:
        """(bytes sent, bytes received) on the host's interface, all headers included."""
        (found,) = json.loads(ip("-n", self.host(number), "-s", "-j", "link", "show", "eth0"))
        return int(found["stats64"]["tx"]["bytes"]), int(found["stats64"]["rx"]["bytes"])

    def start(self, number: int | None, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """A process on a host; None: on the switch."""
        space = self.space if number is None else self.host(number)
        with log.open("ab") as stream:
            return subprocess.Popen(["ip", "netns", "exec", space, *words], stdout=stream, stderr=stream)

    def _wire(self) -> None:
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "add", "br0", "type", "bridge")
        ip("-n", self.space, "link", "set", "br0", "up")
        for number, rate in enumerate(self.rates):
            host, port = self.host(number), f"port{number}"
            ip("netns", "add", host)
            ip("-n", host, "link", "add", "eth0", "type", "veth", "peer", "name", port)
            ip("-n", host, "link", "set", port, "netns", self.space)
            ip("-n", self.space, "link", "set", port, "master", "br0", "up")
            ip("-n", host, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host, "link", "set", device, "up")
            for space, device in ((host, "eth0"), (self.space, port)) if rate else ():
                limit = ["root", "tbf", "rate", rate, "burst", "16kb", "latency", "2s"]
                subprocess.run(["ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", device, *limit], check=True)


@contextlib.contextmanager
def wired(rates: Sequence[str]) -> Iterator[Switch]:
    """The hosts, with both directions of their cables limited to these rates; afterwards they are gone."""
    switch = Switch(prefix=f"pot{os.getpid()}", rates=rates)
    try:
        switch._wire()
        yield switch
    finally:
        for name in [*(switch.host(number) for number in range(len(rates))), switch.space]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
