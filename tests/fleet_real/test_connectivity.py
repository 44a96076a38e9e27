"""``potluck peer --check``: three peers ask one another over real links before anything is trained."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fleet_real.conftest import PEERS, MakeWorld, World, told

from potluck.deploy.connectivity import Connectivity, check_peers
from potluck.deploy.peer import PeerOptions
from potluck.engines.mesh.links import Links

pytestmark = pytest.mark.fleet


def check(world: World, peers: list[int]) -> dict[int, list[Connectivity]]:
    """What each of the peers finds, all at once."""

    def one(peer: int) -> list[Connectivity]:
        keys, shares = world.folder / "keys", world.folder / "shares"
        links = Links(
            id=peer,
            listen=f"tls/127.0.0.1:{world.ports[peer]}",
            connect={k: f"tls/127.0.0.1:{world.ports[k]}" for k in range(peer)},
            cert=keys / f"peer-{peer}.pem",
            key=keys / f"peer-{peer}.key",
            ca=keys / "ca.pem",
            insecure=False,
            max_frame_mb=64,
        )
        place = PeerOptions(
            links=links, data=f"npz:{shares}/device-{peer:03d}.npz", public=f"npz:{shares}/public.npz", test=""
        )
        return check_peers(world.experiment, place)

    with ThreadPoolExecutor(len(peers)) as threads:
        return dict(zip(peers, threads.map(one, peers), strict=True))


def test_all_are_reached(make_world: MakeWorld) -> None:
    world = make_world(engine={"join_timeout_s": 30.0, "linger_s": 10.0})
    for peer, found in check(world, [0, 1, 2]).items():
        assert [reach.peer for reach in found] == [k for k in range(PEERS) if k != peer]
        assert not [reach.fault for reach in found if reach.fault]
        assert all(reach.bytes_per_s > 1e5 and 0 < reach.round_trip_s < 5 for reach in found)


def test_who_is_missing_is_named_with_the_reason(make_world: MakeWorld) -> None:
    world = make_world(engine={"join_timeout_s": 5.0, "linger_s": 0.0})
    found = check(world, [1, 2])
    assert [reach.fault.split(":")[0] for reach in found[1]] == ["refused", ""]
    assert found[1][1].endpoint == "dials this one"
    found = check(world, [0])
    assert all("has not dialled" in reach.fault for reach in found[0])


def test_the_command_tells_and_fails(make_world: MakeWorld) -> None:
    world = make_world()
    code, said = told(world.start(1, "--check", engine__join_timeout_s="2.0", engine__linger_s="0"))
    assert code == 1
    assert "peer 0 (tls/127.0.0.1:" in said
    assert "refused: nothing listens there" in said
    assert not world.out(1).exists()
