"""Keys and certificates: what they are for, who may read them, and devices that make their own."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from potluck.cli import app
from potluck.core.errors import ConfigError
from potluck.engines.security.certificates import (
    common_name,
    require_pair,
    sign,
    ssh_private,
    ssh_public,
    write_certificates,
    write_request,
)


def handshake(folder: Path, server: str, client: str, host: str, client_folder: Path | None = None) -> str:
    """The common name that a server sees of its client, after a handshake with certificates on both sides."""
    sides = []
    for name, purpose, at in (
        (server, ssl.Purpose.CLIENT_AUTH, folder),
        (client, ssl.Purpose.SERVER_AUTH, client_folder or folder),
    ):
        context = ssl.create_default_context(purpose, cafile=str(folder / "ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(str(at / f"{name}.pem"), str(at / f"{name}.key"))
        sides.append(context)
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = sides[0].wrap_bio(a, b, server_side=True)
    there = sides[1].wrap_bio(b, a, server_hostname=host)
    done: set[ssl.SSLObject] = set()
    for _ in range(8):
        for runtime in (there, here):
            try:
                runtime.do_handshake()
                done.add(runtime)
            except ssl.SSLWantReadError:
                pass
    assert len(done) == 2
    seen = here.getpeercert()
    assert seen
    return str(seen["subject"][0][0][1])  # type: ignore[index]


def test_devices_are_servers_and_clients_of_one_another(tmp_path: Path) -> None:
    write_certificates(tmp_path / "keys", 2, {0: ["peer-a.example", "10.0.0.1"]})
    assert handshake(tmp_path / "keys", "peer-0", "peer-1", "peer-a.example") == "peer-1"
    assert handshake(tmp_path / "keys", "server", "peer-1", "localhost") == "peer-1"
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(tmp_path / "keys", "peer-0", "peer-1", "localhost")


def test_keys_are_fit_for_flower(tmp_path: Path) -> None:
    write_certificates(tmp_path / "keys", 1, {})
    pem, key = tmp_path / "keys" / "peer-0.pem", tmp_path / "keys" / "peer-0.key"
    line = ssh_public(pem)
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert line.endswith(" peer-0")
    public = serialization.load_ssh_public_key(line.encode())
    secret = serialization.load_ssh_private_key(ssh_private(key), None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    assert isinstance(secret.curve, ec.SECP384R1)
    assert secret.public_key() == public


def test_a_device_makes_its_own_key(tmp_path: Path) -> None:
    write_certificates(tmp_path / "ca", 0, {})
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {"ca.pem", "ca.key", "server.pem", "server.key"}
    for peer, hosts in ((0, ["peer-a.example"]), (1, [])):
        request, key = write_request(tmp_path / f"device-{peer}", peer, hosts)
        assert (key.stat().st_mode & 0o777, request.suffix) == (0o600, ".csr")
        assert b"PRIVATE" not in request.read_bytes()
        path, names = sign(tmp_path / "ca", request)
        assert names == (hosts or ["localhost", "127.0.0.1", "::1"])
        (tmp_path / f"device-{peer}" / path.name).write_bytes(path.read_bytes())
        require_pair(path, key)
    for file in (tmp_path / "device-0").iterdir():
        (tmp_path / "ca" / file.name).write_bytes(file.read_bytes())
    assert handshake(tmp_path / "ca", "peer-0", "peer-1", "peer-a.example", tmp_path / "device-1") == "peer-1"


def test_what_is_signed_is_never_an_authority(tmp_path: Path) -> None:
    write_certificates(tmp_path / "ca", 0, {})
    key = ec.generate_private_key(ec.SECP384R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer-3")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA384())
    )
    (tmp_path / "greedy.csr").write_bytes(greedy.public_bytes(serialization.Encoding.PEM))
    path, _ = sign(tmp_path / "ca", tmp_path / "greedy.csr")
    made = x509.load_pem_x509_certificate(path.read_bytes())
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert common_name(path) == "peer-3"


def test_requests_of_no_use_are_refused(tmp_path: Path) -> None:
    write_certificates(tmp_path / "ca", 1, {})
    request, key = write_request(tmp_path / "mine", 0)
    with pytest.raises(ConfigError, match="two devices of one name"):
        sign(tmp_path / "ca", request)
    with pytest.raises(ConfigError, match="never overwritten"):
        write_request(tmp_path / "mine", 0)
    with pytest.raises(ConfigError, match=r"holds no ca\.key"):
        sign(tmp_path / "mine", request)
    with pytest.raises(ConfigError, match="no request in PEM form"):
        sign(tmp_path / "ca", key)
    with pytest.raises(ConfigError, match="not the key of --cert"):
        require_pair(tmp_path / "ca" / "peer-0.pem", key)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected one of --devices"),
        (["--devices", "2", "--csr", "1"], "expected one of --devices"),
        (["--csr", "1", "--host", "2=a"], "only names of that device"),
        (["--devices", "-1"], "expected the number of devices"),
    ],
)
def test_the_command_says_what_it_expects(tmp_path: Path, words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["certificates", str(tmp_path / "keys"), *words])
    assert isinstance(result.exception, ConfigError)
    assert told in str(result.exception)


def test_the_commands_from_request_to_certificate(tmp_path: Path) -> None:
    def ran(*words: str) -> str:
        result = CliRunner().invoke(app, ["certificates", *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "devices ask for theirs" in ran(str(tmp_path / "ca"), "--devices", "0")
    assert "stays here" in ran(str(tmp_path / "mine"), "--csr", "4", "--host", "4=peer-e.example")
    said = ran(str(tmp_path / "ca"), "--sign", str(tmp_path / "mine" / "peer-4.csr"))
    assert "is for peer-e.example" in said
    require_pair(tmp_path / "ca" / "peer-4.pem", tmp_path / "mine" / "peer-4.key")
