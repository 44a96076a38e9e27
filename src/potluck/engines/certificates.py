"""A certificate authority for one fleet: its own certificate, the server's, and one per peer.

A peer's common name is ``peer-ID``; its alternative names are the host names and addresses that others dial. Peers are
servers and clients of one another, so their certificates are for both uses. Keys are readable by their owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from potluck.core.errors import ConfigError, MissingExtraError

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    raise MissingExtraError("certificates", "mesh") from None

DAYS = 3650
HERE = ("localhost", "127.0.0.1", "::1")
"""The names of a peer for which no host is given."""


def peer_name(peer: int) -> str:
    """The common name of a peer's certificate."""
    return f"peer-{peer}"


def write_certificates(
    folder: Path,
    devices: int,
    hosts: Mapping[int, Sequence[str]],
    *,
    server: Sequence[str] = HERE,
    days: int = DAYS,
    authority_from: Path | None = None,
) -> list[Path]:
    """Writes ca, server and peer-0 to peer-(N - 1), each as .pem and .key; the paths. The folder must be empty or new.

    ``hosts`` are each peer's names and addresses; ``authority_from`` is a folder whose CA signs, instead of a new one.
    Raises ConfigError.
    """
    if devices < 1:
        raise ConfigError(f"--devices {devices}: expected at least one")
    for peer in hosts:
        if not 0 <= peer < devices:
            raise ConfigError(f"--host {peer}=...: expected an id from 0 to {devices - 1}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name another folder; keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own, authority = _authority() if authority_from is None else _read(authority_from)
    written = _write(folder, "ca", own, authority)
    names = {"server": server} | {peer_name(peer): hosts.get(peer, HERE) for peer in range(devices)}
    for name, found in names.items():
        key = ec.generate_private_key(ec.SECP256R1())
        written += _write(folder, name, _certificate(name, found, key, "potluck CA", authority, days), key)
    return written


def hosts_of(given: Sequence[str]) -> tuple[list[str], dict[int, list[str]]]:
    """(names of the server, names by peer) from ``ID=NAME`` or ``server=NAME``, repeated. Raises ConfigError."""
    server: list[str] = []
    hosts: dict[int, list[str]] = {}
    for text in given:
        who, equals, name = text.partition("=")
        if not equals or not name or not (who == "server" or who.isdigit()):
            raise ConfigError(f"--host {text}: expected ID=NAME or server=NAME, such as 0=peer-a.example")
        (server if who == "server" else hosts.setdefault(int(who), [])).append(name)
    return server, hosts


def common_name(certificate: Path) -> str:
    """The common name in a PEM file. Raises ConfigError."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}: no certificate in PEM form ({error})") from None
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ConfigError(f"{certificate}: {len(names)} common names, expected one")
    return str(names[0].value)


def demand_private(key: Path) -> None:
    """Raises ConfigError unless the key is there and only its owner may read it."""
    if not key.is_file():
        raise ConfigError(f"--key {key}: no such file")
    if key.stat().st_mode & 0o077:
        raise ConfigError(f"--key {key}: readable by others; chmod 600 {key}")


def _authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    return _certificate("potluck CA", (), key, "potluck CA", key, DAYS, is_authority=True), key


def _read(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "written here"
    return x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()), key


def _certificate(
    name: str,
    hosts: Sequence[str],
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    days: int,
    *,
    is_authority: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    start = now - datetime.timedelta(days=1) if days > 0 else now + datetime.timedelta(days=days - 1)
    built = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_authority:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        built = built.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        built = built.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    usage = {"digital_signature": True, "key_cert_sign": is_authority, "crl_sign": is_authority}
    off = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = dict.fromkeys((*off, "encipher_only", "decipher_only"), False)
    return built.add_extension(x509.KeyUsage(**usage, **rest), critical=True).sign(signer, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, made: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> list[Path]:
    paths = [folder / f"{name}.pem", folder / f"{name}.key"]
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle = os.open(paths[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secret)
    finally:
        os.close(handle)
    return paths
