"""A certificate authority for one fleet: its own certificate, the server's, and one per peer.

A peer's common name is ``peer-ID``; its alternative names are the host names and addresses that others dial. Peers are
servers and clients of one another, so their certificates are for both uses. Keys are readable by their owner only. They
are of the curve P-384, which Flower's nodes want too: in OpenSSH form (``ssh_private``, ``ssh_public``).

A device may make its own key: ``write_request`` there, ``sign`` where the CA is; only the request travels.
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
import ssl

DAYS = 3650
CURVE, HASH = ec.SECP384R1(), hashes.SHA384()
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
    if devices < 0:
        raise ConfigError(f"--devices {devices}: expected the number of devices; 0 where all make their own keys")
    for peer in hosts:
        if not 0 <= peer < devices:
            raise ConfigError(f"--host {peer}=...: expected an id from 0 to {devices - 1}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: name another folder; keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own, authority = _authority() if authority_from is None else _read(authority_from)
    written = [_write_public(folder / "ca.pem", own), _write_secret(folder / "ca.key", authority)]
    names = {"server": server} | {peer_name(peer): hosts.get(peer, HERE) for peer in range(devices)}
    for name, found in names.items():
        key = ec.generate_private_key(CURVE)
        made = _certificate(name, found, key.public_key(), "potluck CA", authority, days)
        written += [_write_public(folder / f"{name}.pem", made), _write_secret(folder / f"{name}.key", key)]
    return written


def write_request(folder: Path, peer: int, hosts: Sequence[str] = ()) -> list[Path]:
    """Makes a device's own key, and the request for its certificate, as peer-ID.key and peer-ID.csr; the paths.

    Raises ConfigError where either is there already.
    """
    paths = [folder / f"{peer_name(peer)}{kind}" for kind in (".csr", ".key")]
    for path in paths:
        if path.exists():
            raise ConfigError(f"{path} is there already: keys are never overwritten")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(CURVE)
    names = x509.SubjectAlternativeName([_host(host) for host in hosts or HERE])
    made = x509.CertificateSigningRequestBuilder().subject_name(_named(peer_name(peer))).add_extension(names, False)
    return [_write_public(paths[0], made.sign(key, HASH)), _write_secret(paths[1], key)]


def sign(folder: Path, request: Path, days: int = DAYS) -> tuple[Path, list[str]]:
    """Writes a certificate for a request with the CA of ``folder``, as peer-ID.pem; (its path, the names it holds).

    Nothing but its name, its hosts and its key is taken from the request. Raises ConfigError where the folder holds no
    CA, the request is of no use, or its id has a certificate already.
    """
    if not (folder / "ca.key").is_file():
        raise ConfigError(f"{folder} holds no ca.key: make a CA first with potluck certificates {folder} --devices 0")
    try:
        asked = x509.load_pem_x509_csr(request.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sign {request}: no request in PEM form ({error})") from None
    name, key = _name_of(request, asked.subject), asked.public_key()
    number = name.removeprefix("peer-")
    if not number.isdigit() or name != peer_name(int(number)):
        raise ConfigError(f"--sign {request}: of {name!r}, expected peer-ID; make it with --csr ID")
    if not asked.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(f"--sign {request}: its signature does not hold; was it damaged on its way?")
    path = folder / f"{name}.pem"
    if path.exists():
        raise ConfigError(f"{path} is there already: two devices of one name; give one of them another --csr ID")
    try:
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigError(f"--sign {request}: it names no host; make it with --csr ID") from None
    hosts = [str(host.value) for host in names]
    _, authority = _read(folder)
    return _write_public(path, _certificate(name, hosts, key, "potluck CA", authority, days)), hosts


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
    return _name_of(certificate, _load(certificate).subject)


def _name_of(path: Path, subject: x509.Name) -> str:
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ConfigError(f"{path}: {len(names)} common names, expected one")
    return str(names[0].value)


def ssh_public(certificate: Path) -> str:
    """The public key of a certificate in OpenSSH form, one line, with its name. Raises ConfigError."""
    key = _load(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey), "written here"
    form = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{form.decode()} {common_name(certificate)}"


def ssh_private(key: Path) -> bytes:
    """A private key in OpenSSH form. Raises ConfigError."""
    return _secret(key).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def require_pair(certificate: Path, key: Path) -> None:
    """Raises ConfigError unless the key is the certificate's, and only its owner may read it."""
    require_private(key)
    if _secret(key).public_key() != _load(certificate).public_key():
        raise ConfigError(f"--key {key}: it is not the key of --cert {certificate}")


def _load(certificate: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}: no certificate in PEM form ({error})") from None


def _secret(key: Path) -> ec.EllipticCurvePrivateKey:
    try:
        found = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--key {key}: no private key in PEM form without a password ({error})") from None
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"--key {key}: expected a key of an elliptic curve, as potluck certificates makes them")
    return found


def require_valid(certificate: Path, remedy: str) -> None:
    """Raises ConfigError unless the certificate is there and has not expired."""
    if not certificate.is_file():
        raise ConfigError(f"{certificate}: no such file; make it with: {remedy}")
    common_name(certificate)
    until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    if until < datetime.datetime.now(datetime.UTC):
        raise ConfigError(f"{certificate}: expired on {until:%Y-%m-%d}; make new ones with: {remedy}")


def write_ssh_public(certificate: Path, public: Path) -> None:
    """Writes the public key of a certificate as OpenSSH has it, which is what Flower registers."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_bytes(*form) + b"\n")


def write_ssh_private(key: Path, private: Path) -> None:
    """Writes a PEM key as OpenSSH has it, readable by its owner only. Raises ConfigError."""
    try:
        found = serialization.load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"--key {key}: no private key in PEM form without a password ({error})") from None
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    private.unlink(missing_ok=True)
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, found.private_bytes(*form))
    finally:
        os.close(handle)


def require_private(key: Path) -> None:
    """Raises ConfigError unless the key is there and only its owner may read it."""
    if not key.is_file():
        raise ConfigError(f"--key {key}: no such file")
    if key.stat().st_mode & 0o077:
        raise ConfigError(f"--key {key}: readable by others; chmod 600 {key}")


def _authority() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(CURVE)
    return _certificate("potluck CA", (), key.public_key(), "potluck CA", key, DAYS, is_authority=True), key


def _read(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    return _load(folder / "ca.pem"), _secret(folder / "ca.key")


def _certificate(
    name: str,
    hosts: Sequence[str],
    key: ec.EllipticCurvePublicKey,
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
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=0 if is_authority else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not is_authority:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        built = built.add_extension(x509.ExtendedKeyUsage(both), critical=False)
        built = built.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    usage = {"digital_signature": True, "key_cert_sign": is_authority, "crl_sign": is_authority}
    off = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = dict.fromkeys((*off, "encipher_only", "decipher_only"), False)
    return built.add_extension(x509.KeyUsage(**usage, **rest), critical=True).sign(signer, HASH)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_public(path: Path, made: x509.Certificate | x509.CertificateSigningRequest) -> Path:
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def _write_secret(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secret)
    finally:
        os.close(handle)
    return path


EXPIRED, WRONG_NAME, UNKNOWN_CA = (10,), (62, 64), (18, 19, 20, 21)
"""OpenSSL's verification codes."""


def certificate_fault(error: ssl.SSLCertVerificationError, *, host: str, ca: str) -> str:
    """What is wrong with a certificate, and the remedy. ``host``: whose name it lacks; ``ca``: what its CA is."""
    if error.verify_code in EXPIRED:
        return "its certificate has expired; make new ones with potluck certificates"
    if error.verify_code in WRONG_NAME:
        return f"its certificate is for another name ({error.verify_message}); make it with --host {host}=NAME"
    if error.verify_code in UNKNOWN_CA:
        return f"its certificate is {ca}"
    return f"its certificate is refused: {error.verify_message}"
