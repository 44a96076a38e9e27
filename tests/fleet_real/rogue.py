"""A peer that breaks the rules, in a process of its own: it has a good certificate and posts what it should not.

    python rogue.py FOLDER PORTS FAULT

It bears id 2, dials the others, and holds for each round a post that is sound but for FAULT.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from potluck.core.types import Device
from potluck.deploy.peer import PeerOptions, prepare_peer, run_of
from potluck.engines.federation import Federation
from potluck.engines.mesh.links import Links
from potluck.engines.mesh.mesh import open_mesh
from potluck.engines.peer_round import spec_of_updates
from potluck.experiment.config import Experiment

ME, LONGEST_S = 2, 90.0


def post(federation: Federation, me: Device, round: int, fault: str) -> bytes:
    """The frame of a uniform posterior, with a fault."""
    told = round - 1 if fault == "old" else round
    spec: Any = spec_of_updates(federation, me, told)
    terms = {name: leaf.value for name, leaf in spec.items() if name != "posteriors"}
    samples, classes = spec["posteriors"].shape
    p_SC = torch.full((samples, classes), 1 / classes)
    if fault == "sums":
        p_SC *= 1.1
    if fault == "nan":
        p_SC[3, 1] = torch.nan
    if fault == "shape":
        p_SC = p_SC[:-1]
    if fault == "seeds":
        terms["seed_digest"] = "0" * 64
    frame, _ = federation.messages.write_up({"posteriors": p_SC, **terms}, told, me.id, None, {})
    return bytes(frame)


def main() -> None:
    """Posts until nobody is linked any more."""
    folder, ports, fault = Path(sys.argv[1]), [int(port) for port in sys.argv[2].split(",")], sys.argv[3]
    keys, shares = folder / "keys", folder / "shares"
    links = Links(
        id=ME,
        listen=f"tls/127.0.0.1:{ports[ME]}",
        connect={peer: f"tls/127.0.0.1:{ports[peer]}" for peer in range(ME)},
        cert=keys / f"peer-{ME}.pem",
        key=keys / f"peer-{ME}.key",
        ca=keys / "ca.pem",
        insecure=False,
        max_frame_mb=64,
    )
    place = PeerOptions(links=links, data=f"npz:{shares}/device-002.npz", public=f"npz:{shares}/public.npz", test="")
    ready = prepare_peer(Experiment.load(folder / "peers.toml"), place)
    federation, run = ready.federation, run_of(ready.resolved)
    frames = {
        r: post(federation, federation.fleet.devices[ME], r, fault) for r in range(1, ready.experiment.rounds + 1)
    }

    def answer(query: Any) -> None:
        with query:
            *_, word, _ = str(query.key_expr).split("/")
            query.reply(query.key_expr, frames[int(word.removeprefix("r"))])

    with open_mesh(links, f"{run}", len(ports)) as mesh:
        held = [mesh._session.declare_queryable(f"{run}/r{round}/{ME}", answer) for round in frames]
        if fault == "other":  # and answers for peer 1, whose true process is not there
            held += [mesh._session.declare_queryable(f"{run}/r{round}/1", answer) for round in frames]
        mesh.join(1, LONGEST_S)
        until = time.monotonic() + LONGEST_S
        while mesh.linked() and time.monotonic() < until:
            time.sleep(0.1)


main()
