"""Before a run among peers: who is reached, by whom, and how fast.

Run on all machines at about the same time: only peers in a check answer one another, so a run is not disturbed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from potluck.deploy.peer import PeerOptions, prepare_peer, run_of
from potluck.engines.mesh.links import SOUND
from potluck.engines.mesh.mesh import Mesh, open_mesh
from potluck.engines.security.certificates import peer_name
from potluck.experiment.config import Experiment

PROBE_S, PAUSE_S = 20.0, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Connectivity:
    """One other peer as seen from here. ``fault`` is empty where all is well; else the seconds and the rate are 0."""

    peer: int
    endpoint: str
    fault: str
    round_trip_s: float = 0.0
    bytes_per_s: float = 0.0


def check_peers(experiment: Experiment, options: PeerOptions) -> list[Connectivity]:
    """Each other peer: resolved, reachable, TLS and names fine, the same run, round trip and rate. Trains nothing.

    Waits for peers up to ``[engine] join_timeout_s``, and stays ``linger_s`` so that the others can ask too. Raises
    ConfigError and DataError as a run would.
    """
    ready = prepare_peer(experiment, options)
    engine, others = ready.experiment.engine, [d.id for d in ready.federation.fleet.devices if d.id != options.links.id]
    with open_mesh(options.links, f"{run_of(ready.resolved)}-check", len(others) + 1) as mesh:
        until = time.monotonic() + engine.join_timeout_s
        found: dict[int, Connectivity] = {}
        while len(found) < len(others):
            found |= {peer: reach for peer in others if peer not in found and (reach := _reach(mesh, options, peer))}
            if time.monotonic() > until:
                break
            time.sleep(PAUSE_S)
        missing = [peer for peer in others if peer not in found]
        found |= {peer: _missing(mesh, options, peer, engine.join_timeout_s) for peer in missing}
        mesh.linger([peer for peer in others if peer not in missing], engine.linger_s)
    return [found[peer] for peer in others]


def _endpoint(options: PeerOptions, peer: int) -> str:
    return options.links.connect.get(peer, "dials this one")


def _reach(mesh: Mesh, options: PeerOptions, peer: int) -> Connectivity | None:
    if not options.links.insecure and peer_name(peer) not in mesh.linked().values():
        return None
    if (told := mesh.probe(peer, PROBE_S)) is None:
        return None
    return Connectivity(
        peer=peer, endpoint=_endpoint(options, peer), fault="", round_trip_s=told[0], bytes_per_s=told[1]
    )


def _missing(mesh: Mesh, options: PeerOptions, peer: int, waited_s: float) -> Connectivity:
    """What is wrong with a peer that did not answer."""
    if peer_name(peer) in mesh.linked().values():
        fault = "linked, but silent: is it in --check too, and of the same experiment (all but name, rounds, [engine])?"
    elif peer in options.links.connect:
        fault = options.links.probe(options.links.connect[peer])
        if fault == SOUND:
            fault = f"reachable and TLS is sound, but it does not answer as {peer_name(peer)}: is that its --id?"
    else:
        fault = f"it has not dialled {options.links.listen} within {waited_s:g} s, and --connect does not name it"
    return Connectivity(peer=peer, endpoint=_endpoint(options, peer), fault=fault)
