"""A device's part of a run on Flower: a SuperNode with its own data, its own key, and its own durable folder.

store/   home (Flower's), node.toml, key (as OpenSSH has it), supernode.log, work.jsonl, <run>/<device>/*.safetensors
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from potluck.core.errors import ConfigError, EngineError
from potluck.engines.flower.superlink import Address, address_of, fault_of, free_port, require_flower, running, tail
from potluck.engines.flower.warm import CAN_FORK, warm
from potluck.engines.security.certificates import common_name, require_private, require_valid, write_ssh_private

LOOK_S, AGAIN_S, REFUSED_S = 0.5, 10.0, 100.0
"""Flower lets a device in again 60 s after it was cut off: a refusal is tried again for so many seconds."""
REFUSED = ("code: 2004", "code: 2003")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What is local to a device: the server's address, its files, its key, its tier."""

    address: str
    data: str
    public: str
    test: str
    tier: str
    key: Path | None
    ca: Path | None
    number: int | None
    insecure: bool
    store: Path
    digest: str
    """That of the only experiment it works for; empty: any."""
    patience_s: float
    warm: bool
    """Whether a process waits for messages, with everything imported."""


def join(options: JoinOptions, tell: Tell) -> None:
    """Runs the device until it is stopped. Raises PotluckError where it cannot work."""
    require_flower()
    address = address_of(options.address, options.ca, options.insecure)
    number = _number(options)
    for name in ("data", "public", "test"):
        given = _path(getattr(options, name))
        if given is not None and not given.is_file():
            raise ConfigError(f"--{name} {getattr(options, name)}: no such file; expected npz:FILE of potluck split")
    options.store.mkdir(parents=True, exist_ok=True)
    with (options.store / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"--store {options.store}: another device works here; give each its own") from None
        _write_node(options, number)
        _wait_for(address, options.patience_s, tell)
        tell(f"device {number}, {options.tier or 'tier as the server has it'}, at {address}; Ctrl-C ends it")
        home, log = options.store / "home", options.store / "supernode.log"
        with warm(home, log) if options.warm and CAN_FORK else nullcontext():
            _stay(options, address, tell)


def _number(options: JoinOptions) -> int:
    """The device's number: of its certificate, or as given. Raises ConfigError."""
    if options.insecure:
        if options.number is None:
            raise ConfigError("--id: missing; without a certificate a device says its number, such as --id 0")
        return options.number
    if options.key is None:
        raise ConfigError("--key: missing; expected peer-N.key with peer-N.pem beside it (potluck certificates)")
    require_private(options.key)
    certificate = options.key.with_suffix(".pem")
    require_valid(certificate, "potluck certificates DIR --devices N")
    name = common_name(certificate)
    kind, _, number = name.partition("-")
    if kind != "peer" or not number.isdigit():
        raise ConfigError(f"{certificate} is of {name!r}, expected a device's, such as 'peer-0'")
    if options.number not in (None, int(number)):
        raise ConfigError(f"--id {options.number}: the certificate {certificate} is of {name!r}")
    return int(number)


def _path(given: str) -> Path | None:
    return Path(given.removeprefix("npz:")).expanduser() if given else None


def _write_node(options: JoinOptions, number: int) -> None:
    """What the apps are told of this device, and its key in Flower's form."""
    node: dict[str, Any] = {"partition-id": number, "tier": options.tier, "store": str(options.store.resolve())}
    for name in ("data", "public", "test"):
        given = _path(getattr(options, name))
        node[name] = str(given.resolve()) if given is not None else ""
    if options.digest:
        node["digest"] = options.digest
    (options.store / "node.toml").write_text(tomli_w.dumps(node), encoding="utf-8")
    if options.key is not None:
        write_ssh_private(options.key, options.store / "key")


def _wait_for(address: Address, patience_s: float, tell: Tell) -> None:
    """Until the server answers. Raises EngineError for what waiting does not mend, or when patience is over."""
    until, said = time.monotonic() + patience_s, ""
    while True:
        fault, may_mend = fault_of(address)
        if not fault:
            return
        if not may_mend or time.monotonic() > until:
            raise EngineError(fault)
        if fault != said:
            tell(f"{fault}; trying again for {patience_s:g} s")
            said = fault
        time.sleep(min(AGAIN_S, max(0.1, until - time.monotonic())))


def _stay(options: JoinOptions, address: Address, tell: Tell) -> None:
    """A SuperNode, started again while the server refuses what it will accept later. Raises EngineError."""
    first, place = time.monotonic(), options.store
    log = place / "supernode.log"
    work = place / "work.jsonl"
    work.write_text("")
    while True:
        since = log.stat().st_size if log.exists() else 0
        began = time.monotonic()
        with running("flower-supernode", _arguments(options, address), place / "home", log) as node:
            _show(node, work, tell)
        said = log.read_bytes()[since:].decode(errors="replace")
        first = first if time.monotonic() - began < AGAIN_S * 2 else time.monotonic()
        refused = any(code in said for code in REFUSED)
        if refused and time.monotonic() - first < REFUSED_S:
            tell("refused by the server: just cut off, or its key is not registered; trying again")
            time.sleep(AGAIN_S)
            continue
        if refused:
            raise EngineError(
                f"{address} refuses this device: its key is not of the server's certificates folder, another process "
                "uses it, or the clocks differ by more than 300 s"
            )
        raise EngineError(f"the SuperNode ended: {tail(log)}; see {log}")


def _arguments(options: JoinOptions, address: Address) -> list[str]:
    words = ["--superlink", str(address), "--host", "127.0.0.1", "--port", str(free_port())]
    words += ["--node-config", str((options.store / "node.toml").resolve())]
    if options.insecure:
        return [*words, "--insecure"]
    key = ["--auth-supernode-private-key", str((options.store / "key").resolve())]
    return [*words, "--root-certificates", str(address.ca), *key]


def _show(node: subprocess.Popen[bytes], work: Path, tell: Tell) -> None:
    """Tells of each piece of work until the SuperNode ends."""
    shown = 0
    while node.poll() is None:
        lines = [json.loads(line) for line in work.read_text(encoding="utf-8").split("\n")[:-1]]
        for line in lines[shown:]:
            tell(_line(line))
        shown = len(lines)
        time.sleep(LOOK_S)


def _line(line: Mapping[str, Any]) -> str:
    if line["verb"] == "hello":
        return f"refused: {line['reason']}" if line["reason"] else "the server knows this device"
    told = f"round {line['round']}  {line['verb']} {line['status']}  {line['seconds']:.1f} s"
    return f"{told}  {line['reason']}" if line["reason"] else f"{told}, {line['bytes']:,} bytes up"
