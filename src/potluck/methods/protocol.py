"""What a method is: a frozen dataclass of hyper-parameters with a few pure functions.

A method sees trees of tensors, never bytes, sockets, files or clocks. State goes in and comes out; nothing hides in
``self``; what is not in a tree is not in the checkpoint. Its fields are the options of ``[method]``, checked by their
annotations; the two fields ``net`` and ``fit`` are filled when the run is built.

    ServerMethod   a server and devices     initial_state, then each round: broadcast -> train -> aggregate;    model
    PeerMethod     no server                initial_state, then each round: publish -> receive;                 model
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from potluck.core.contexts import DeviceContext, Reply, ServerContext
from potluck.core.options import Setup
from potluck.core.spec import Spec
from potluck.core.types import Device
from potluck.nets.tier_nets import TierNets
from potluck.training.fit import Fit

State = TypeVar("State")
LocalState = TypeVar("LocalState")
Broadcast_co = TypeVar("Broadcast_co", covariant=True)
Update = TypeVar("Update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts about a method that others must know before it runs."""

    personal: bool = False
    """``model`` reads the local state and nothing of the server's: such a model is evaluated on its device."""
    peers: bool = False
    """A PeerMethod."""
    relayed: bool = False
    """A PeerMethod behind a relay: a device receives what the relay still holds for it before it is evaluated."""
    kind: str = "any"
    """The kind of net it trains: any, ode or deq."""
    preset: str = ""
    """The net it takes where ``[model]`` names none, and in a comparison where it names one of another kind."""
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """profile -> option -> value, or ``IfServerData``. ``"train"`` and ``"model"`` hold values of those sections."""


class ServerMethod(Protocol[State, LocalState, Broadcast_co, Update]):
    """A method with a server. All four type variables are trees (TypedDicts, so that a file shows what is sent)."""

    traits: ClassVar[Traits]

    @property
    def net(self) -> TierNets:
        """The net of a tier."""

    @property
    def fit(self) -> Fit:
        """Local training."""

    def check(self, setup: Setup) -> Sequence[str]:
        """Warnings about a legal but doubtful experiment; raises ConfigError for one that cannot work."""

    def initial_state(self, context: ServerContext) -> State:
        """The server's first state."""

    def broadcast(self, state: State, device: Device, context: ServerContext) -> Broadcast_co:
        """What the server sends to one device."""

    def train(
        self, local_state: LocalState | None, broadcast: Any, context: DeviceContext
    ) -> tuple[LocalState | None, Update]:
        """On the device: (local state to keep, what is sent back). Inputs are not mutated."""

    def update_spec(self, state: State, device: Device, context: ServerContext) -> Spec:
        """What an update of this device must look like: checked before its tensors are made."""

    def aggregate(self, state: State, replies: Iterable[Reply[Update]], context: ServerContext) -> State:
        """The next state; folds the replies one by one, in device order. No replies: the same state."""

    def model(self, state: State | None, local_state: LocalState | None, device: Device) -> nn.Module:
        """What this device would deploy. A personal method gets no state; its local state is None before round 1."""

    def variant(self, device: Device) -> Hashable:
        """Devices with equal variants deploy equal models, given equal local states."""


class PeerMethod(Protocol[LocalState, Update]):
    """A method among peers."""

    traits: ClassVar[Traits]

    @property
    def net(self) -> TierNets:
        """The net of a tier."""

    @property
    def fit(self) -> Fit:
        """Local training."""

    def check(self, setup: Setup) -> Sequence[str]:
        """Warnings about a legal but doubtful experiment; raises ConfigError for one that cannot work."""

    def initial_state(self, context: DeviceContext) -> LocalState:
        """A peer's first local state."""

    def publish(self, local_state: LocalState, context: DeviceContext) -> tuple[LocalState, Update]:
        """Works alone, then says something to the others: (local state, what it says)."""

    def update_spec(self, local_state: LocalState, context: DeviceContext) -> Spec:
        """What another peer says must look like this: of the context, and of what is equal in all local states."""

    def receive(self, local_state: LocalState, inbox: Mapping[int, Update], context: DeviceContext) -> LocalState:
        """Learns from the updates that arrived, by peer id."""

    def combine(self, updates: Iterable[Update]) -> Mapping[str, Any] | None:
        """What says as much as all these updates (one at least), for a relay; None where the updates are needed."""

    def receive_combined(
        self, local_state: LocalState, combined: Mapping[str, Any], mine: Update, context: DeviceContext
    ) -> LocalState:
        """Learns from a combination that holds one's own update, bitwise as from the others' updates."""

    def model(self, local_state: LocalState | None, device: Device) -> nn.Module:
        """What this peer would deploy; the local state is None before its first round."""


def deployed(method: Any, state: Mapping[str, Any] | None, local_state: Any, device: Device) -> nn.Module:
    """What a device would deploy, of either kind of method."""
    peers = method.traits.peers
    net: nn.Module = method.model(local_state, device) if peers else method.model(state, local_state, device)
    return net
