"""What a mesh makes of posts that are late, forged, doubled or damaged: three sessions in this process, with mTLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.fleet_real.conftest import PEERS, free_port

from potluck.core.errors import ConfigError, EngineError
from potluck.engines.mesh.links import Links, by_id
from potluck.engines.mesh.mesh import Mesh, open_mesh
from potluck.engines.security.certificates import hosts_of, write_certificates

pytestmark = pytest.mark.fleet
RUN = "potluck/test"
Open = Callable[..., list[Mesh]]


def links_of(folder: Path, ports: list[int], peer: int) -> Links:
    return Links(
        id=peer,
        listen=f"tls/127.0.0.1:{ports[peer]}",
        connect={k: f"tls/127.0.0.1:{ports[k]}" for k in range(peer)},
        cert=folder / f"peer-{peer}.pem",
        key=folder / f"peer-{peer}.key",
        ca=folder / "ca.pem",
        insecure=False,
        max_frame_mb=4,
    )


@pytest.fixture
def meshes(tmp_path: Path) -> Iterator[list[Mesh]]:
    write_certificates(tmp_path / "keys", PEERS, {})
    ports = [free_port() for _ in range(PEERS)]
    with ExitStack() as stack:
        links = [links_of(tmp_path / "keys", ports, peer) for peer in range(PEERS)]
        for found in links:
            found.check(PEERS)
        opened = [stack.enter_context(open_mesh(found, RUN, PEERS)) for found in links]
        for mesh in opened:
            mesh.join(PEERS - 1, 20.0)
        yield opened


def sound(peer: int, frame: bytes) -> str:
    return "" if frame.startswith(f"from {peer}".encode()) else f"device {peer}: not its post"


def test_posts_are_pulled(meshes: list[Mesh]) -> None:
    for peer, mesh in enumerate(meshes):
        assert set(mesh.linked().values()) == {f"peer-{k}" for k in range(PEERS)} - {f"peer-{peer}"}
        mesh.hold(1, f"from {peer}".encode() + bytes(100_000))
    found = meshes[0].gather(1, [1, 2], 10.0, sound)
    assert {peer: answer.status for peer, answer in found.items()} == {1: "ok", 2: "ok"}
    assert found[2].frame == b"from 2" + bytes(100_000)
    assert meshes[0].gather(1, [], 10.0, sound) == {}


def test_a_post_that_is_not_ready_is_asked_for_again(meshes: list[Mesh]) -> None:
    later = threading.Timer(0.7, lambda: meshes[1].hold(1, b"from 1"))
    later.start()
    found = meshes[0].gather(1, [1], 10.0, sound)
    later.join()
    assert found[1].status == "ok"
    assert found[1].seconds < 2.5


def test_the_deadline_ends_the_waiting(meshes: list[Mesh]) -> None:
    meshes[1].hold(1, b"from 1")
    start = time.monotonic()
    found = meshes[0].gather(1, [1, 2], 1.0, sound)
    assert 0.9 < time.monotonic() - start < 1.6
    assert (found[1].status, found[2].status) == ("ok", "lost")
    assert found[2].reason == "device 2: no post within 1 s"


def test_a_round_that_is_held_no_more_is_late(meshes: list[Mesh]) -> None:
    for round in (1, 2, 3):
        meshes[1].hold(round, f"from 1 in {round}".encode())
    found = {round: meshes[0].gather(round, [1], 3.0, sound)[1] for round in (1, 2, 3)}
    assert {round: answer.status for round, answer in found.items()} == {1: "late", 2: "ok", 3: "ok"}
    assert found[2].frame == b"from 1 in 2"


def also_answers(mesh: Mesh, peer: int, frame: bytes) -> Any:
    def answer(query: Any) -> None:
        with query:
            query.reply(query.key_expr, frame)

    return mesh._session.declare_queryable(f"{RUN}/*/{peer}", answer)


def test_nobody_answers_for_another_peer(meshes: list[Mesh]) -> None:
    meshes[1].hold(1, b"from 1, the true one")
    forger = also_answers(meshes[2], 1, b"from 1, forged by 2")
    time.sleep(0.5)
    found = meshes[0].gather(1, [1], 5.0, sound)
    assert (found[1].status, found[1].frame) == ("ok", b"from 1, the true one")
    forger.undeclare()


def test_nobody_answers_for_a_peer_that_says_nothing(meshes: list[Mesh]) -> None:
    forger = also_answers(meshes[2], 1, b"from 1, forged by 2")
    time.sleep(0.5)
    assert meshes[0].gather(1, [1], 1.0, sound)[1].status == "lost"
    forger.undeclare()


@pytest.mark.parametrize(("second", "status"), [(b"from 1", "ok"), (b"from 1 again", "rejected")])
def test_two_posts_of_one_peer_must_be_equal(meshes: list[Mesh], second: bytes, status: str) -> None:
    meshes[1].hold(1, b"from 1")
    twin = also_answers(meshes[1], 1, second)
    time.sleep(0.5)
    found = meshes[0].gather(1, [1], 5.0, sound)[1]
    assert found.status == status
    assert status == "ok" or found.reason == "device 1: two different posts"
    twin.undeclare()


def test_a_damaged_post_is_rejected_with_its_reason(meshes: list[Mesh]) -> None:
    meshes[1].hold(1, b"noise")
    meshes[2].hold(1, b"from 2")
    found = meshes[0].gather(1, [1, 2], 5.0, sound)
    assert (found[1].status, found[1].reason) == ("rejected", "device 1: not its post")
    assert found[2].status == "ok"


def test_a_post_beyond_the_limit_does_not_arrive(meshes: list[Mesh]) -> None:
    meshes[1].hold(1, b"from 1" + bytes(6 * 2**20))
    meshes[2].hold(1, b"from 2")
    found = meshes[0].gather(1, [1, 2], 2.0, sound)
    assert (found[1].status, found[2].status) == ("lost", "ok")


WRONG = {
    "tcp/0.0.0.0:7447": "not encrypted",
    "tls/nowhere": "expected tls/HOST:PORT",
    "udp/127.0.0.1:1": "expected tls/HOST:PORT",
}


@pytest.mark.parametrize("listen", WRONG)
def test_endpoints_are_checked(tmp_path: Path, listen: str) -> None:
    plain = Links(id=0, listen=listen, connect={}, cert=None, key=None, ca=None, insecure=False, max_frame_mb=1)
    with pytest.raises(ConfigError, match=WRONG[listen]):
        plain.check(PEERS)


def test_options_are_checked(tmp_path: Path) -> None:
    def links(**changed: Any) -> Links:
        table: dict[str, Any] = {"id": 0, "listen": "tls/127.0.0.1:7447", "connect": {}, "cert": None, "key": None}
        return Links(**{**table, "ca": None, "insecure": False, "max_frame_mb": 1, **changed})

    for changed, told in (
        ({"id": 3}, "--id 3: expected an id of the fleet"),
        ({"connect": {0: "tls/a:1"}}, "expected the id of another peer"),
        ({"connect": {7: "tls/a:1"}}, "expected the id of another peer"),
        ({}, "--cert: missing; make them with: potluck certificates"),
        ({"insecure": True}, "--insecure goes with tcp"),
        ({"insecure": True, "listen": "tcp/10.0.0.1:1"}, "not encrypted"),
    ):
        with pytest.raises(ConfigError, match=told):
            links(**changed).check(PEERS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stands twice"):
        by_id("--connect", ["1=tls/a:1", "1=tls/b:1"])
    with pytest.raises(ConfigError, match="expected ID=ENDPOINT"):
        by_id("--connect", ["tls/a:1"])
    with pytest.raises(ConfigError, match="expected ID=NAME"):
        hosts_of(["peer-a.example"])
    assert hosts_of(["server=a", "0=b", "0=c"]) == (["a"], {0: ["b", "c"]})
    with pytest.raises(ConfigError, match="from 0 to 2"):
        write_certificates(tmp_path / "keys", PEERS, {3: ["a"]})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        write_certificates(tmp_path / "full", PEERS, {})


def test_two_peers_of_one_name_are_refused(tmp_path: Path) -> None:
    write_certificates(tmp_path / "keys", PEERS, {})
    ports = [free_port() for _ in range(PEERS)]
    first = links_of(tmp_path / "keys", ports, 0)
    twin = Links(
        **{
            **{name: getattr(first, name) for name in Links.__slots__},
            "id": 1,
            "listen": f"tls/127.0.0.1:{ports[1]}",
            "connect": {0: first.listen},
        }
    )
    with open_mesh(first, RUN, PEERS) as mesh, open_mesh(twin, RUN, PEERS) as other:
        other.join(1, 10.0)
        with pytest.raises(EngineError, match="two peers bear the name 'peer-0'"):
            mesh.join(1, 10.0)
