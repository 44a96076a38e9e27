"""A relay: any Mesh as a Star, for engines that know a server and devices only.

    order r       absorb what was posted in the peer's last round, with that round's task; then post for round r
    the relay     keeps the posts of a round until each of its peers has absorbed them; it trains nothing
    at the end    a closing order absorbs only (settle.py)

The bytes differ from those of a mesh, the state does not. Where the method can pool posts (an integer sum), the relay
sends the pool, whose size does not grow with the number of peers, and a peer takes its own post out; otherwise it
forwards the posts of the others. Whoever runs the relay sees posts, or sums of them: never weights or private data.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from potluck.core.errors import WireError
from potluck.core.spec import Spec
from potluck.core.types import Desk, Device, Reply, Setup, Task
from potluck.methods.protocol import Mesh, Traits
from potluck.models.fit import Fit
from potluck.models.nets import Nets

Tree = Mapping[str, Any]
HELD = "relay"
"""Where a device's own state keeps its post and its round, until they are absorbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """a mesh behind a relay"""

    inner: Mesh[Any, Any]
    pools: bool = True

    @property
    def traits(self) -> Traits:
        """Those of the Mesh, as a Star's."""
        return replace(self.inner.traits, peers=False, relayed=True)

    @property
    def net(self) -> Nets:
        """The net of a tier."""
        return self.inner.net

    @property
    def fit(self) -> Fit:
        """Local training."""
        return self.inner.fit

    def check(self, setup: Setup) -> Sequence[str]:
        return self.inner.check(setup)

    def start(self, desk: Desk) -> Tree:
        return {}

    def pending(self, state: Tree, device: Device) -> int:
        """The round whose posts the device has not absorbed yet; 0: none."""
        round: int = state.get("pending", {}).get(str(device.id), 0)
        return round

    def cast(self, state: Tree, device: Device, desk: Desk) -> Tree:
        round = self.pending(state, device)
        if not round:
            return {}
        held = state["rounds"][str(round)]
        if "pool" in held:
            return {"round": round, "pool": held["pool"]}
        others = {peer: post for peer, post in held["posts"].items() if peer != str(device.id)}
        return {"round": round, "posts": others}

    def train(self, own: Tree | None, down: Tree, task: Task) -> tuple[Tree, Tree]:
        before = self.settled(own, down, task) if own else self.inner.start(task)
        after, up = self.inner.post(before, task)
        return {**after, HELD: {"round": task.round, "post": up}}, up

    def settled(self, own: Tree, down: Tree, task: Task) -> Any:
        """The own state after absorbing what the relay holds for this device. Raises WireError if it is of no use."""
        mesh_own = {key: value for key, value in own.items() if key != HELD}
        held, round = own.get(HELD), down.get("round", 0)
        if (held["round"] if held else 0) != round:
            raise WireError(f"the relay sends posts of round {round}, which this device did not post in last")
        if held is None:
            return mesh_own
        then = replace(task, round=round)
        if "pool" in down:
            return self.inner.absorb_pool(mesh_own, down["pool"], held["post"], then)
        return self.inner.absorb(mesh_own, {int(peer): post for peer, post in down["posts"].items()}, then)

    def expect(self, state: Tree, device: Device, desk: Desk) -> Spec:
        assert desk.public is not None, "checked before the run"
        task = Task(round=desk.round, device=device, data=desk.public, public=desk.public, seed=desk.seed)
        return self.inner.expect(desk.once("relay", lambda: self.inner.start(task)), task)

    def merge(self, state: Tree, replies: Iterable[Reply[Any]], desk: Desk) -> Tree:
        posts = {reply.device.id: reply.up for reply in replies}
        if not posts:
            return state
        pool = self.inner.pool(posts.values()) if self.pools else None
        held = {"posts": {str(peer): up for peer, up in posts.items()}} if pool is None else {"pool": pool}
        pending = {**state.get("pending", {}), **{str(peer): desk.round for peer in posts}}
        return _kept({**state.get("rounds", {}), str(desk.round): held}, pending)

    def without(self, state: Tree, settled: Iterable[int]) -> Tree:
        """The state after these devices have absorbed what was held for them; empty where nothing is held."""
        gone = {str(device) for device in settled}
        return _kept(state.get("rounds", {}), {k: v for k, v in state.get("pending", {}).items() if k not in gone})

    def model(self, state: Tree | None, own: Tree | None, device: Device) -> nn.Module:
        mesh_own = {key: value for key, value in own.items() if key != HELD} if own else None
        return self.inner.model(mesh_own, device)

    def variant(self, device: Device) -> Hashable:
        return device.id


def _kept(rounds: Tree, pending: Mapping[str, int]) -> Tree:
    """The rounds that somebody has yet to absorb."""
    kept = {number: held for number, held in rounds.items() if int(number) in set(pending.values())}
    return {"rounds": kept, "pending": dict(pending)} if kept else {}
