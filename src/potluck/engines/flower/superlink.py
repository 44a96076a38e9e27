"""Flower's processes: a SuperLink and a SuperNode as children of ours, isolated, and stopped with all they started.

Telemetry, the update check and installing of dependencies at run time are off; FLWR_HOME is a folder of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from potluck.core.errors import ConfigError, EngineError, MissingExtraError
from potluck.engines.security.certificates import certificate_fault

APPS = "potluck.deploy.apps"
"""The module in which Flower finds the two apps."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
CLOCK_TOLERANCE_S = 300.0
"""Flower refuses a device whose clock is further off."""
START_S, STOP_S, TALK_S = 60.0, 10.0, 120.0
PARENT_DEATH_SIGNAL = 1
OFF = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a SuperLink is, and the CA that vouches for it; without a CA, in plain HTTP on loopback."""

    host: str
    port: int
    ca: Path | None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def health(self) -> str:
        """The URL that answers when it is up."""
        return f"http{'s' if self.ca else ''}://{self}/health"

    def dialled(self) -> Address:
        """The address that a process on this host dials."""
        return Address(
            host="127.0.0.1" if self.host in ("0.0.0.0", "[::]", "::") else self.host, port=self.port, ca=self.ca
        )


def address_of(text: str, ca: Path | None, insecure: bool) -> Address:
    """``HOST:PORT``. Raises ConfigError; a link that is not encrypted is for loopback only."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{text}: expected HOST:PORT, such as 0.0.0.0:8443")
    if insecure and host not in LOOPBACK:
        raise ConfigError(
            f"{text}: --insecure is for 127.0.0.1 only; elsewhere use certificates (potluck certificates)"
        )
    if not insecure and ca is None:
        raise ConfigError(f"{text}: not encrypted without a CA; make one with: potluck certificates DIR --devices N")
    if ca is not None and not ca.is_file():
        raise ConfigError(f"{ca}: no such file; expected the CA's certificate, ca.pem")
    return Address(host=host, port=int(port), ca=None if insecure else ca)


def fault_of(address: Address) -> tuple[str, bool]:
    """(what is wrong with the way to a SuperLink, whether waiting may mend it); ("", False) if nothing is."""
    context = ssl.create_default_context(cafile=str(address.ca)) if address.ca else None
    try:
        with urllib.request.urlopen(address.health(), timeout=10, context=context) as answer:
            return _clock_fault(str(answer.headers.get("Date", ""))), False
    except urllib.error.HTTPError as error:
        return f"{address}: answers with HTTP {error.code}: is it a SuperLink of Flower 1.41?", False
    except OSError as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            ca = f"of another CA than {address.ca}: take the ca.pem of the server"
            return f"{address}: {certificate_fault(cause, host='server', ca=ca)}", False
        if isinstance(cause, ssl.SSLError):
            return f"{address}: no TLS there ({cause.reason}): is it the right port?", False
        if isinstance(cause, ConnectionRefusedError):
            return f"{address}: refused, nothing listens there", True
        return f"{address}: unreachable ({cause})", True


def _clock_fault(date: str) -> str:
    try:
        off = time.time() - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return ""
    if abs(off) <= CLOCK_TOLERANCE_S:
        return ""
    return (
        f"this clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server's, expected at most "
        f"{CLOCK_TOLERANCE_S:g} s: set the time (timedatectl set-ntp true)"
    )


def require_flower() -> None:
    """Raises MissingExtraError where Flower is not installed: its programs are children, and would only not start."""
    if importlib.util.find_spec("flwr") is None:
        raise MissingExtraError("a fleet on Flower", "flower")


def require_free_port(address: Address) -> None:
    """Raises ConfigError unless one can listen there."""
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address.host.strip("[]"), address.port))
    except OSError as error:
        raise ConfigError(f"--address {address}: cannot listen there ({error.strerror}); choose another port") from None


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """That of every child: Flower's home is ours, nothing is reported, and modules beside us are found."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(programs_of(home)), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join(part for part in (str(Path.cwd()), os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, **OFF, "FLWR_HOME": str(home.resolve()), "PATH": path, "PYTHONPATH": modules}


def programs_of(home: Path) -> Path:
    """Where programs of ours stand that children find before those of the same name elsewhere."""
    return home.resolve() / "bin"


@contextlib.contextmanager
def running(name: str, arguments: Sequence[str], home: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Flower as a child; afterwards it and all it started are gone."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            env=environment(home),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_us,  # noqa: PLW1509 - it only makes two system calls
        )
        try:
            yield child
        finally:
            stop(child)


def _end_with_us() -> None:  # pragma: no cover - runs between fork and exec
    os.setpgid(0, 0)  # Ctrl-C is for us: we stop the child
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the child and what it started, then SIGKILL to those that stay, each by its id."""
    family = [child.pid, *descendants(child.pid)]
    _send(family, signal.SIGTERM)
    _until_gone(child, family, STOP_S)
    _send([pid for pid in family if alive(pid)], signal.SIGKILL)
    child.wait()
    _until_gone(child, family, STOP_S)


def _until_gone(child: subprocess.Popen[bytes], family: Sequence[int], within_s: float) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until and (child.poll() is None or any(alive(pid) for pid in family[1:])):
        time.sleep(0.1)


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def alive(pid: int) -> bool:
    """Whether the process runs (Linux); one that has ended and waits for its parent to hear of it does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """The ids of the processes below one (Linux; elsewhere none are found, and they end with their parent)."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, left = list[int](), [pid]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found


def tail(log: Path, lines: int = 3) -> str:
    """The last lines of a log, as one."""
    if not log.exists():
        return ""
    return " | ".join(line.strip() for line in log.read_text(errors="replace").splitlines()[-lines:] if line.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Flower's own command line against a SuperLink of ours."""

    home: Path
    address: Address

    def connect(self) -> None:
        """Writes the connection into Flower's home."""
        where = self.address.dialled()
        trust = f'root-certificates = "{where.ca.resolve()}"' if where.ca else "insecure = true"
        self.home.mkdir(parents=True, exist_ok=True)
        text = f'[superlink]\ndefault = "fleet"\n\n[superlink.fleet]\naddress = "{where}"\n{trust}\n'
        (self.home / "config.toml").write_text(text, encoding="utf-8")

    def calls(self, commands: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
        """What each ``flwr WORDS`` says, as JSON; all in one process, whose start takes longer than the calls.

        Raises EngineError with the reason of the first that failed.
        """
        asked = [[*words, "--format", "json"] for words in commands]
        command = [sys.executable, "-m", "potluck.engines.flower.private", json.dumps(asked)]
        try:
            done = subprocess.run(
                command, env=environment(self.home), capture_output=True, text=True, timeout=TALK_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"flwr {' '.join(commands[0][:2])}: no answer within {TALK_S:g} s") from None
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"said"')]
        for words, outcome in zip(commands, found, strict=False):
            if not outcome["said"].get("success", False):
                reason = outcome["said"].get("error-message") or outcome["told"][-500:]
                raise EngineError(f"flwr {' '.join(words[:2])}: {reason}")
        if len(found) != len(commands):
            raise EngineError(f"flwr {' '.join(commands[len(found)][:2])}: {' | '.join(done.stderr.splitlines()[-3:])}")
        return [outcome["said"] for outcome in found]
