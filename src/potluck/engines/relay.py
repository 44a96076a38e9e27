"""A relay: any PeerMethod as a ServerMethod, for engines that know a server and devices only.

    request r     receive what was published in the peer's last round, in that round's context; then publish for r
    the relay     keeps the updates of a round until each of its peers has received them; it trains nothing
    at the end    a closing request receives only (``finalise``): the state is then that of a run without a relay

The bytes differ from those of a mesh, the state does not. Where the method can combine updates (an integer sum), the
relay sends the combination, whose size does not grow with the number of peers, and a peer takes its own update out;
otherwise it forwards the updates of the others. Whoever runs the relay sees updates, or sums of them: never weights or
private data.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.errors import WireError
from potluck.core.options import Setup
from potluck.core.spec import Spec
from potluck.core.types import Device
from potluck.engines.contract import Engine, Request
from potluck.engines.federation import Federation
from potluck.engines.result import RoundResult, ledger_rows
from potluck.methods.protocol import PeerMethod, Traits
from potluck.nets.tier_nets import TierNets
from potluck.training.fit import Fit

Tree = Mapping[str, Any]
HELD = "relay"
"""Where a device's local state keeps its update and its round, until the others' have been received."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """peers behind a relay"""

    inner: PeerMethod[Any, Any]
    combines: bool = True

    @property
    def traits(self) -> Traits:
        """Those of the PeerMethod, as a ServerMethod's."""
        return replace(self.inner.traits, peers=False, relayed=True)

    @property
    def net(self) -> TierNets:
        """The net of a tier."""
        return self.inner.net

    @property
    def fit(self) -> Fit:
        """Local training."""
        return self.inner.fit

    def check(self, setup: Setup) -> Sequence[str]:
        return self.inner.check(setup)

    def initial_state(self, context: ServerContext) -> Tree:
        return {}

    def pending(self, state: Tree, device: Device) -> int:
        """The round whose updates the device has not received yet; 0: none."""
        round: int = state.get("pending", {}).get(str(device.id), 0)
        return round

    def broadcast(self, state: Tree, device: Device, context: ServerContext) -> Tree:
        round = self.pending(state, device)
        if not round:
            return {}
        held = state["rounds"][str(round)]
        if "pool" in held:
            return {"round": round, "pool": held["pool"]}
        others = {peer: update for peer, update in held["posts"].items() if peer != str(device.id)}
        return {"round": round, "posts": others}

    def train(self, local_state: Tree | None, broadcast: Tree, context: DeviceContext) -> tuple[Tree, Tree]:
        before = self.finalised(local_state, broadcast, context) if local_state else self.inner.initial_state(context)
        after, update = self.inner.publish(before, context)
        return {**after, HELD: {"round": context.round, "post": update}}, update

    def finalised(self, local_state: Tree, broadcast: Tree, context: DeviceContext) -> Any:
        """The peer's local state after receiving what the relay holds for it. Raises WireError if it is of no use."""
        inner_state, held = _inner(local_state), local_state.get(HELD)
        round = broadcast.get("round", 0)
        if (held["round"] if held else 0) != round:
            raise WireError(f"the relay sends updates of round {round}, which this device did not publish in last")
        if held is None:
            return inner_state
        then = replace(context, round=round)
        if "pool" in broadcast:
            return self.inner.receive_combined(inner_state, broadcast["pool"], held["post"], then)
        return self.inner.receive(inner_state, {int(peer): post for peer, post in broadcast["posts"].items()}, then)

    def update_spec(self, state: Tree, device: Device, context: ServerContext) -> Spec:
        public = context.public
        assert public is not None, "checked before the run"
        there = DeviceContext(round=context.round, device=device, data=public, public=public, seed=context.seed)
        return self.inner.update_spec(context.once("relay", lambda: self.inner.initial_state(there)), there)

    def aggregate(self, state: Tree, replies: Iterable[Reply[Any]], context: ServerContext) -> Tree:
        updates = {reply.device.id: reply.update for reply in replies}
        if not updates:
            return state
        combined = self.inner.combine(updates.values()) if self.combines else None
        held = {"pool": combined} if combined is not None else {"posts": {str(peer): u for peer, u in updates.items()}}
        pending = {**state.get("pending", {}), **{str(peer): context.round for peer in updates}}
        return _kept({**state.get("rounds", {}), str(context.round): held}, pending)

    def without(self, state: Tree, finalised: Iterable[int]) -> Tree:
        """The state after these devices have received what was held for them; empty where nothing is held."""
        gone = {str(device) for device in finalised}
        return _kept(state.get("rounds", {}), {k: v for k, v in state.get("pending", {}).items() if k not in gone})

    def model(self, state: Tree | None, local_state: Tree | None, device: Device) -> nn.Module:
        return self.inner.model(_inner(local_state) if local_state else None, device)

    def variant(self, device: Device) -> Hashable:
        return device.id


def _inner(local_state: Tree) -> dict[str, Any]:
    """The local state without what the relay keeps in it."""
    return {key: value for key, value in local_state.items() if key != HELD}


def _kept(rounds: Tree, pending: Mapping[str, int]) -> Tree:
    """The rounds that somebody has yet to receive."""
    kept = {number: held for number, held in rounds.items() if int(number) in set(pending.values())}
    return {"rounds": kept, "pending": dict(pending)} if kept else {}


def finalise(federation: Federation, engine: Engine, result: RoundResult) -> None:
    """Every device receives what the relay still holds for it, and the relay forgets it.

    Replaces the checkpoint of ``result`` and adds to its ledger. What fails stays pending; a resume with more rounds
    goes on from there.
    """
    before, relay = result.checkpoint, federation.method
    acks, local_states, finalised, seconds = dict(before.acks), dict(before.local_states), set[int](), 0.0

    def requests() -> Iterator[Request]:
        context = federation.server_context(before.round)
        for device in federation.fleet.devices:
            if relay.pending(before.state, device):
                message = relay.broadcast(before.state, device, context)
                made, size = federation.messages.write_down(message, before.round)
                ack = before.acks.get(device.id, 0)
                yield Request(device=device, round=before.round, verb="settle", frame=made, ack=ack, tensor_bytes=size)

    for response in engine.exchange(requests(), federation.fleet.deadline_s):
        request, device = response.request, response.request.device
        status, reason = response.status, response.reason
        if status == "ok":
            try:
                _, header = federation.messages.read_up(response.frame, request.round, device.id, {})
                acks[device.id], local_states[device.id] = before.round, str(header.facts.get("own", ""))
                finalised.add(device.id)
            except WireError as error:
                status, reason = "rejected", str(error)
        seconds = max(seconds, response.seconds)
        result.rows += ledger_rows(response, 0, status, reason)
    result.seconds += seconds
    result.checkpoint = replace(
        before,
        state=relay.without(before.state, finalised),
        acks=acks,
        local_states=local_states,
        simulated_seconds=before.simulated_seconds + seconds,
    )
