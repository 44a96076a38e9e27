"""What a run is, and what it has come to: the values that the round loop is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potluck.core import tree
from potluck.core.contexts import ServerContext
from potluck.core.spec import Spec
from potluck.core.types import Shard
from potluck.fleet.cohort import Fleet
from potluck.tasks.task import LearningTask
from potluck.wire.messages import Messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """What a run is, for the loop."""

    method: Any
    fleet: Fleet
    messages: Messages
    held: Shard | None
    public: Shard | None
    seed: int
    task: LearningTask
    score_spec: Spec
    """What the totals of an evaluation must look like."""
    test_samples: int
    depths: Mapping[str, int]
    """What ``[model] steps`` says of each tier: it makes models of equal variants unlike."""
    evaluate_every: int
    evaluate_samples: int
    evaluate_on: Sequence[str] = ("common",)
    """``common`` test data, each device's ``own``, or both."""

    def server_context(self, round: int) -> ServerContext:
        """The server's side of a round."""
        return ServerContext(
            round=round, devices=self.fleet.devices, held=self.held, public=self.public, seed=self.seed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state after ``round``; of each device its last aggregated round, and digests of what it keeps."""

    round: int
    state: Mapping[str, Any]
    acks: Mapping[int, int] = field(default_factory=dict)
    local_states: Mapping[int, str] = field(default_factory=dict)
    codec: Mapping[int, str] = field(default_factory=dict)
    simulated_seconds: float = 0.0

    def digest(self) -> str:
        """The ``state_sha256`` of the summary."""
        own = {str(device): sha for device, sha in self.local_states.items() if sha}
        codec = {str(device): sha for device, sha in self.codec.items() if sha}
        return tree.digest({"state": self.state, "own": own, "codec": codec})
