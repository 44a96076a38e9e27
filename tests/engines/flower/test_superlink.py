"""The way to a SuperLink: what is wrong with it in words; children that are isolated, and gone afterwards."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from potluck.core.errors import ConfigError, EngineError
from potluck.deploy.join import JoinOptions, join
from potluck.engines.flower import superlink
from potluck.engines.flower.superlink import (
    Address,
    address_of,
    descendants,
    environment,
    fault_of,
    free_port,
    require_free_port,
)
from potluck.engines.security.certificates import write_certificates, write_ssh_private, write_ssh_public


@contextmanager
def listening(keys: Path | None, clock_off_s: float = 0.0) -> Iterator[int]:
    """A server on loopback that answers as a SuperLink's health does; its port."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(int(time.time() - clock_off_s))

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    if keys is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "server.pem", keys / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_certificates(folder / "keys", 1, {})
    write_certificates(folder / "other", 1, {})
    write_certificates(folder / "old", 1, {}, days=-1, authority_from=folder / "keys")
    write_certificates(folder / "away", 1, {}, server=["elsewhere.example"], authority_from=folder / "keys")
    return folder


def fault(port: int, ca: Path | None) -> tuple[str, bool]:
    return fault_of(Address(host="127.0.0.1", port=port, ca=ca))


def test_a_sound_way_has_no_fault(keys: Path) -> None:
    with listening(keys / "keys") as port:
        assert fault(port, keys / "keys/ca.pem") == ("", False)
    with listening(None) as port:
        assert fault(port, None) == ("", False)


@pytest.mark.parametrize(
    ("served", "off_s", "told"),
    [
        ("other", 0.0, "is of another CA than"),
        ("old", 0.0, "has expired"),
        ("away", 0.0, "is for another name"),
        ("keys", 400.0, "s ahead of the server's, expected at most 300 s"),
        ("keys", -400.0, "s behind the server's"),
        ("", 0.0, "no TLS there"),
    ],
)
def test_a_fault_that_waiting_does_not_mend_is_told(keys: Path, served: str, off_s: float, told: str) -> None:
    with listening(keys / served if served else None, off_s) as port:
        said, may_mend = fault(port, keys / "keys/ca.pem")
    assert told in said
    assert not may_mend


def joining(keys: Path, store: Path, port: int, **changed: object) -> JoinOptions:
    (store.parent / "share.npz").touch()
    given: dict[str, object] = {
        "address": f"127.0.0.1:{port}",
        "data": f"npz:{store.parent}/share.npz",
        "public": "",
        "test": "",
        "tier": "",
        "key": keys / "keys/peer-0.key",
        "ca": keys / "keys/ca.pem",
        "number": None,
        "insecure": False,
        "store": store,
        "digest": "",
        "patience_s": 0.0,
        "warm": False,
        **changed,
    }
    return JoinOptions(**given)  # type: ignore[arg-type]


def test_nobody_there_may_mend(keys: Path, tmp_path: Path) -> None:
    port = free_port()
    assert fault(port, None) == (f"127.0.0.1:{port}: refused, nothing listens there", True)
    with pytest.raises(EngineError, match="refused, nothing listens there"):
        join(joining(keys, tmp_path / "store", port), lambda line: None)


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no key": ({"key": None}, "--key: missing"),
    "no CA": ({"ca": None}, "not encrypted without a CA"),
    "a CA that is not there": ({"ca": Path("/nowhere/ca.pem")}, "/nowhere/ca.pem: no such file"),
    "no data": ({"data": "npz:/nowhere.npz"}, "--data npz:/nowhere.npz: no such file"),
    "another's number": ({"number": 3}, "--id 3: the certificate"),
    "no number": ({"insecure": True, "key": None, "ca": None}, "--id: missing"),
    "plain on a network": ({"insecure": True, "address": "10.0.0.1:8443"}, "--insecure is for 127.0.0.1 only"),
    "no port": ({"address": "server.example"}, "expected HOST:PORT"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option_of_a_device_is_named(keys: Path, tmp_path: Path, name: str) -> None:
    changed, told = WRONG[name]
    with pytest.raises(ConfigError) as raised:
        join(joining(keys, tmp_path / "store", 1, **changed), lambda line: None)
    assert told in str(raised.value)


def test_an_expired_key_and_a_certificate_that_is_no_device_are_refused(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expired on"):
        join(joining(keys, tmp_path / "store", 1, key=keys / "old/peer-0.key"), lambda line: None)
    with pytest.raises(ConfigError, match="is of 'server', expected a device's"):
        join(joining(keys, tmp_path / "store", 1, key=keys / "keys/server.key"), lambda line: None)


def test_two_devices_do_not_share_a_folder(keys: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        said: list[str] = []

        def second(line: str) -> None:
            said.append(line)
            with pytest.raises(ConfigError, match="another device works here"):
                join(joining(keys, tmp_path / "store", port), lambda line: None)

        port = free_port()
        stack.enter_context(pytest.raises(EngineError))
        join(joining(keys, tmp_path / "store", port, patience_s=0.2), second)
    assert said


def test_a_port_in_use_is_told() -> None:
    with listening(None) as port, pytest.raises(ConfigError, match=r"cannot listen there .*; choose another port"):
        require_free_port(Address(host="127.0.0.1", port=port, ca=None))


@pytest.mark.parametrize("text", ["127.0.0.1", ":8443", "host:http", "host:0", "host:70000"])
def test_an_address_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        address_of(text, None, True)


def test_children_report_nothing_and_are_at_home_with_us(tmp_path: Path) -> None:
    found = environment(tmp_path / "home")
    assert (found["FLWR_TELEMETRY_ENABLED"], found["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert found["FLWR_HOME"] == str(tmp_path / "home")


def test_a_child_and_what_it_started_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that ignores SIGTERM, and its own child in a group of its own."""
    monkeypatch.setattr(superlink, "STOP_S", 2.0)
    program = tmp_path / "stubborn"
    code = "import signal,subprocess,sys,time;signal.signal(15, signal.SIG_IGN)"
    code += (
        ";subprocess.Popen([sys.executable,'-c','import time;time.sleep(600)'],start_new_session=True);time.sleep(600)"
    )
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(superlink, "sys", type("Here", (), {"executable": str(program), "platform": sys.platform}))
    with superlink.running("stubborn", [], tmp_path / "home", tmp_path / "log") as child:
        until = time.monotonic() + 60
        while not (below := descendants(child.pid)) and time.monotonic() < until:
            time.sleep(0.02)
        assert below
    assert child.poll() is not None
    assert not any(Path(f"/proc/{pid}").exists() and superlink.alive(pid) for pid in below)


def test_a_process_that_has_ended_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
        until = time.monotonic() + 60
        while superlink.alive(child.pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert Path(f"/proc/{child.pid}").exists()  # nobody has asked for its exit code yet
        assert not superlink.alive(child.pid)


def test_keys_in_the_form_that_flower_takes(keys: Path, tmp_path: Path) -> None:
    write_ssh_private(keys / "keys/peer-0.key", tmp_path / "key")
    write_ssh_public(keys / "keys/peer-0.pem", tmp_path / "key.pub")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (tmp_path / "key.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    told = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, text=True, check=False)
    assert told.returncode or told.stdout.split()[:2] == (tmp_path / "key.pub").read_text().split()[:2]
