"""Flower without a network: the real ServerApp and ClientApp over a Grid in this process, with faults by table.

Private names of flwr 1.41 stand here only: who runs the task, and the id of a message. Another release breaks loudly.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from potluck.deploy.client_app import client_app
from potluck.deploy.flower_app import on_flower, write_app
from potluck.deploy.server_app import server_app
from potluck.experiment.config import Experiment

Fault = Callable[[Message, Message], "Message | None"]
"""(order, reply) -> what arrives; None: nothing ever does."""


@contextmanager
def one_task() -> Iterator[None]:
    """Messages can be made only within a task of Flower's."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        setattr(TaskIdentity, name, 1)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def failed(code: int, reason: str = "a reason") -> Fault:
    return lambda request, reply: Message(Error(code=code, reason=reason), reply_to=request)


@dataclass
class HereGrid(Grid):
    """Nodes answer at once. ``faults``: by (device, round, verb); ``nodes``: each node's configuration, by node id."""

    config: Mapping[str, Any]
    nodes: dict[int, dict[str, Any]]
    faults: dict[tuple[int, int, str], Fault] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    sent: list[Message] = field(default_factory=list)
    _replies: dict[str, Message] = field(default_factory=dict)
    _contexts: dict[int, Context] = field(default_factory=dict)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in reversed(self.nodes) if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            name = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = name
            self.sent.append(message)
            ids.append(name)
            reply = self._answer(message)
            if reply is not None:
                self._replies[name] = reply
        return ids

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        config = self.nodes[node]
        context = self._contexts.setdefault(
            node, Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config=dict(self.config))
        )
        try:
            reply = client_app(message, context)
        except Exception as error:
            reply = Message(Error(code=2, reason=repr(error)), reply_to=message)
        facts = message.content.config_records.get("order")
        if facts is None:
            return reply
        fault = self.faults.get((config["partition-id"], facts["round"], facts["verb"]))  # type: ignore[arg-type]
        return reply if fault is None else fault(message, reply)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in message_ids if name in self._replies]


def grid_of(experiment: Experiment, folder: Path, **of_nodes: Any) -> HereGrid:
    """A grid whose nodes simulate the devices of an experiment; the run folder is ``folder/run``."""
    experiment = on_flower(experiment).experiment
    write_app(folder / "app", experiment, folder / "run", "f" * 32)
    table = tomllib.loads((folder / "app" / "pyproject.toml").read_text())
    config = table["tool"]["flwr"]["app"]["config"]
    devices = sum(tier.devices for tier in experiment.fleet.tier)
    nodes = {
        1000 + 7 * device: {"partition-id": device, "num-partitions": devices, "store": str(folder / f"store-{device}")}
        for device in range(devices)
    }
    return HereGrid(config=config, nodes=nodes, **of_nodes)


def serve(grid: HereGrid) -> None:
    """Runs the ServerApp over the grid."""
    with one_task():
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(grid.config))
        server_app(grid=grid, context=context)
