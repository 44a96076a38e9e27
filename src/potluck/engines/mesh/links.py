"""How peers reach one another: endpoints, keys, who may say what; and what is wrong where nobody answers.

Values only: zenoh itself stands in mesh.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.core.errors import ConfigError
from potluck.engines.security.certificates import certificate_fault, common_name, peer_name, require_pair

ENDPOINT = re.compile(r"(tls|quic|tcp)/(\[[0-9a-fA-F:.]+\]|[^/\s:]+):(\d{1,5})")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PROBE_S = 3.0
SOUND = "reachable, and TLS is sound; does it run the same experiment?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """One peer's side: where it listens, whom it dials (by id), its certificate, and the limits of a frame."""

    id: int
    listen: str
    connect: Mapping[int, str]
    cert: Path | None
    key: Path | None
    ca: Path | None
    insecure: bool
    max_frame_mb: int

    def check(self, devices: int) -> None:
        """Raises ConfigError naming the option that is wrong."""
        if not 0 <= self.id < devices:
            raise ConfigError(f"--id {self.id}: expected an id of the fleet, 0 to {devices - 1}")
        for peer, endpoint in self.connect.items():
            if peer == self.id or not 0 <= peer < devices:
                raise ConfigError(f"--connect {peer}={endpoint}: expected the id of another peer, 0 to {devices - 1}")
        for option, endpoint in [("--listen", self.listen), *(("--connect", e) for e in self.connect.values())]:
            self._require_endpoint(option, endpoint)
        if self.insecure:
            return
        for option, path in (("--cert", self.cert), ("--key", self.key), ("--ca", self.ca)):
            if path is None or not path.is_file():
                told = "missing" if path is None else f"{path}: no such file"
                raise ConfigError(f"{option}: {told}; make them with: potluck certificates DIR --devices {devices}")
        assert self.cert is not None, "checked above"
        assert self.key is not None, "checked above"
        name = common_name(self.cert)
        if name != peer_name(self.id):
            raise ConfigError(
                f"--id {self.id}: the certificate {self.cert} is of {name!r}, expected {peer_name(self.id)!r}"
            )
        require_pair(self.cert, self.key)

    def _require_endpoint(self, option: str, endpoint: str) -> None:
        found = ENDPOINT.fullmatch(endpoint)
        if found is None:
            raise ConfigError(f"{option} {endpoint}: expected tls/HOST:PORT, such as tls/0.0.0.0:7447")
        plain = found[1] == "tcp"
        if plain and (found[2] not in LOOPBACK or not self.insecure):
            raise ConfigError(
                f"{option} {endpoint}: not encrypted; tcp is for tests on 127.0.0.1 with --insecure. For tls/..., make "
                "certificates with: potluck certificates DIR --devices N"
            )
        if not plain and self.insecure:
            raise ConfigError(f"{option} {endpoint}: --insecure goes with tcp/127.0.0.1:PORT only")

    def settings(self, run: str, devices: int) -> dict[str, Any]:
        """The keys of zenoh's configuration."""
        found: dict[str, Any] = {
            "mode": "peer",
            "listen/endpoints": [self.listen],
            "connect/endpoints": list(self.connect.values()),
            "connect/retry": {"period_init_ms": 100, "period_max_ms": 2000, "period_increase_factor": 1.5},
            "scouting/multicast/enabled": False,
            "scouting/gossip/enabled": False,
            "transport/link/rx/max_message_size": self.max_frame_mb * 2**20,
            "transport/shared_memory/enabled": False,
        }
        if not self.insecure:
            tls = "transport/link/tls"
            found |= {
                f"{tls}/root_ca_certificate": str(self.ca),
                f"{tls}/enable_mtls": True,
                f"{tls}/listen_certificate": str(self.cert),
                f"{tls}/listen_private_key": str(self.key),
                f"{tls}/connect_certificate": str(self.cert),
                f"{tls}/connect_private_key": str(self.key),
                f"{tls}/verify_name_on_connect": True,
                "access_control": _access(run, self.id, devices),
            }
        return found

    def diagnosis(self) -> str:
        """What is wrong with each endpoint that is dialled, in words."""
        if not self.connect:
            return f"nobody has dialled {self.listen}, and --connect names nobody"
        return "; ".join(f"{peer_name(peer)} at {end}: {self.probe(end)}" for peer, end in self.connect.items())

    def probe(self, endpoint: str) -> str:
        """One plain TLS handshake: refused, unreachable, unknown CA, expired, wrong name, or sound."""
        found = ENDPOINT.fullmatch(endpoint)
        assert found is not None, "checked before"
        host, port = found[2].strip("[]"), int(found[3])
        try:
            with socket.create_connection((host, port), timeout=PROBE_S) as raw:
                return SOUND if found[1] != "tls" else self._handshake(raw, host)
        except ssl.SSLCertVerificationError as error:
            return certificate_fault(error, host="ID", ca=f"of an unknown CA; {self._verify()}")
        except ssl.SSLError as error:
            return f"it refuses our certificate ({error.reason}): another CA, or expired; {self._verify()}"
        except ConnectionRefusedError:
            return f"refused: nothing listens there; nc -vz {host} {port}"
        except socket.gaierror as error:
            return f"the name {host} is not resolved ({error.strerror})"
        except OSError as error:
            return f"unreachable ({error}); nc -vz {host} {port}"

    def _handshake(self, raw: socket.socket, host: str) -> str:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(str(self.cert), str(self.key))
        with context.wrap_socket(raw, server_hostname=host) as secure, contextlib.suppress(TimeoutError):
            secure.recv(1)  # with TLS 1.3 a refusal of our certificate arrives after the handshake
        return SOUND

    def _verify(self) -> str:
        return f"same CA? openssl verify -CAfile {self.ca} {self.cert}"


def _access(run: str, own: int, devices: int) -> dict[str, Any]:
    """Who may send what: a peer answers, and announces, under its own id only; anybody of the fleet may ask."""
    others = [peer for peer in range(devices) if peer != own]
    speak = ["reply", "put", "declare_queryable"]

    def rule(name: str, flows: Sequence[str], messages: Sequence[str], key: str) -> dict[str, Any]:
        return {"id": name, "permission": "allow", "flows": list(flows), "messages": list(messages), "key_exprs": [key]}

    rules = [rule(f"from-{peer}", ["ingress"], speak, f"{run}/*/{peer}") for peer in others]
    rules += [
        rule("mine", ["egress"], speak, f"{run}/*/{own}"),
        rule("asked", ["ingress"], ["query"], f"{run}/*/{own}"),
        rule("ask", ["egress"], ["query"], f"{run}/**"),
        rule("listen", ["ingress", "egress"], ["declare_subscriber"], f"{run}/note/*"),
    ]
    names = [{"id": peer_name(peer), "cert_common_names": [peer_name(peer)]} for peer in others]
    general = ["mine", "asked", "ask", "listen"]
    policies = [{"rules": [f"from-{peer}", *general], "subjects": [peer_name(peer)]} for peer in others]
    return {"enabled": True, "default_permission": "deny", "rules": rules, "subjects": names, "policies": policies}


def by_id(option: str, given: Sequence[str]) -> dict[int, str]:
    """``ID=VALUE`` pairs as a table. Raises ConfigError for another form, or an id that stands twice."""
    found: dict[int, str] = {}
    for text in given:
        number, equals, value = text.partition("=")
        if not equals or not value or not number.isdigit():
            raise ConfigError(f"{option} {text}: expected ID=ENDPOINT, such as 2=tls/peer-c.example:7447")
        if int(number) in found:
            raise ConfigError(f"{option} {text}: peer {number} stands twice")
        found[int(number)] = value
    return found


def as_json(settings: Mapping[str, Any]) -> dict[str, str]:
    """Each value as JSON."""
    return {key: json.dumps(value) for key, value in settings.items()}
