"""What a method is: a frozen dataclass of hyper-parameters with a few pure functions.

A method sees trees of tensors, never bytes, sockets, files or clocks. State goes in and comes out; nothing hides in
``self``; what is not in a tree is not in the checkpoint. Its fields are the options of ``[method]``, checked by their
annotations; the two fields ``net`` and ``fit`` are filled when the run is built.

    Star   a server and its devices     start, then each round: cast -> train -> merge;     model
    Mesh   peers without a server       start, then each round: post -> absorb;             model
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from torch import nn

from potluck.core.spec import Spec
from potluck.core.types import Desk, Device, Reply, Setup, Task
from potluck.models.fit import Fit
from potluck.models.nets import Nets

State = TypeVar("State")
Own = TypeVar("Own")
Down_co = TypeVar("Down_co", covariant=True)
Up = TypeVar("Up")


@dataclass(frozen=True, slots=True)
class IfServerData:
    """A profile's value where the server holds samples of its own (two or more), and where it does not."""

    yes: Any
    no: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts about a method that others must know before it runs."""

    personal: bool = False
    """``model`` reads ``own`` and nothing of the state: such a model is evaluated on its device."""
    peers: bool = False
    """A Mesh: peers without a server."""
    relayed: bool = False
    """A Mesh behind a relay, seen as a Star: a device settles what the relay holds for it before it is evaluated."""
    kind: str = "any"
    """The kind of net it trains: any, ode or deq."""
    preset: str = ""
    """The net it takes in a comparison when ``[model]`` names another kind."""
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """profile -> option -> value, or ``IfServerData``. ``"train"`` and ``"model"`` hold values of those sections."""


class Star(Protocol[State, Own, Down_co, Up]):
    """A method with a server. All four type variables are trees (TypedDicts, so that a file shows what is sent)."""

    traits: ClassVar[Traits]

    @property
    def net(self) -> Nets:
        """The net of a tier."""

    @property
    def fit(self) -> Fit:
        """Local training."""

    def check(self, setup: Setup) -> Sequence[str]:
        """Warnings about a legal but doubtful experiment; raises ConfigError for one that cannot work."""

    def start(self, desk: Desk) -> State:
        """The server's first state."""

    def cast(self, state: State, device: Device, desk: Desk) -> Down_co:
        """What the server sends to one device."""

    def train(self, own: Own | None, down: Any, task: Task) -> tuple[Own | None, Up]:
        """On the device: (own state to keep, what is sent back). Inputs are not mutated."""

    def expect(self, state: State, device: Device, desk: Desk) -> Spec:
        """What a reply of this device must look like: checked before its tensors are made."""

    def merge(self, state: State, replies: Iterable[Reply[Up]], desk: Desk) -> State:
        """The next state; folds the replies one by one, in device order. No replies: the same state."""

    def model(self, state: State | None, own: Own | None, device: Device) -> nn.Module:
        """What this device would deploy. A personal method gets no state; ``own`` is None before the first round."""

    def variant(self, device: Device) -> Hashable:
        """Devices with equal variants deploy equal models, given equal own states."""


class Mesh(Protocol[Own, Up]):
    """A method among peers."""

    traits: ClassVar[Traits]

    @property
    def net(self) -> Nets:
        """The net of a tier."""

    @property
    def fit(self) -> Fit:
        """Local training."""

    def check(self, setup: Setup) -> Sequence[str]:
        """Warnings about a legal but doubtful experiment; raises ConfigError for one that cannot work."""

    def start(self, task: Task) -> Own:
        """A peer's first own state."""

    def post(self, own: Own, task: Task) -> tuple[Own, Up]:
        """Works alone, then says something to the others: (own state, post)."""

    def expect(self, own: Own, task: Task) -> Spec:
        """What a post of another peer must look like: of the task, and of what is equal in all own states."""

    def absorb(self, own: Own, inbox: Mapping[int, Up], task: Task) -> Own:
        """Learns from the posts that arrived, by peer id."""

    def pool(self, posts: Iterable[Up]) -> Mapping[str, Any] | None:
        """What says as much as all these posts (one at least), for a relay; None where the posts are needed."""

    def absorb_pool(self, own: Own, pool: Mapping[str, Any], mine: Up, task: Task) -> Own:
        """Learns from a pool that holds one's own post, bitwise as from the others' posts."""

    def model(self, own: Own | None, device: Device) -> nn.Module:
        """What this peer would deploy; ``own`` is None before its first round."""


def deployed(method: Any, state: Mapping[str, Any] | None, own: Any, device: Device) -> nn.Module:
    """What a device would deploy, of a Star or a Mesh."""
    net: nn.Module = method.model(own, device) if method.traits.peers else method.model(state, own, device)
    return net
