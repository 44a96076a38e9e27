"""The laws that every method obeys, for the tests of a method of one's own.

    import pytest
    from potluck.testing import LAWS, check_method, small_experiment

    def test_the_laws(tmp_path):
        check_method("signmean:SignMean", tmp_path)               # all of them, on the small experiment

    @pytest.mark.parametrize("law", LAWS)                         # or each by itself, on an experiment of one's own
    def test_law(law, tmp_path):
        law(small_experiment("signmean:SignMean", "method.step=0.5", "rounds=3"), tmp_path)

A law takes an experiment and an empty folder, and raises AssertionError where the method breaks it.

1 inputs are not mutated; 2 every tree survives its frame bitwise; 3 the order of devices does not matter, nor what ran
before; 4 a resumed run equals an unbroken one; 5 the pool, and for peers a relay, give the state of one process;
6 measured bytes are those of the messages; 7 no replies change nothing; 9 damaged bytes are refused and named. What a
method becomes at the ends of its options (8), and that a weaker tier does less (10), only its own tests can say.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potluck.core import tree
from potluck.core.contexts import DeviceContext, Reply
from potluck.core.errors import PotluckError, WireError
from potluck.engines.contract import Engine, Request, Response
from potluck.engines.local.inprocess import InProcess
from potluck.engines.round import initial_checkpoint, run_rounds
from potluck.experiment import build, run
from potluck.experiment.compare import variants
from potluck.experiment.config import Experiment, override
from potluck.experiment.prepare import Prepared, prepare
from potluck.experiment.run_reader import Run
from potluck.wire import frame

SMALL: Mapping[str, Any] = {
    "name": "small",
    "rounds": 2,
    "data": {"source": "synthetic:260,1,8,8", "public": 0.1, "server_samples": 20},
    "model": {"name": "resnet8"},
    "train": {"batch_size": 16},
    "fleet": {
        "tier": [
            {"name": "small", "devices": 2, "gflops": 1.0, "uplink_mbps": 1.0, "availability": 0.9},
            {"name": "large", "devices": 2, "gflops": 10.0},
        ],
        "participation": 0.75,
    },
    "engine": {"kind": "inprocess"},
}
"""Four devices in two tiers on data made up on the spot: a run takes about a second."""
SHALLOW: Mapping[str, Mapping[str, Any]] = {
    "fedode": {"steps": {"small": 1, "large": 3}},
    "feddeq": {"steps": {"small": 2, "large": 5}},
}
"""Depths that say as much as the ladder's."""
Law = Callable[[Experiment, Path], None]
PEERS = 3


TASKS: Mapping[str, Sequence[str]] = {
    "classification": (),
    "regression": ("data.source=synthetic:130,12", "task.kind=regression", "model.name=mlp", "train.clip_norm=1.0"),
    "multilabel": ("data.source=synthetic:130,12", "task.kind=multilabel", "model.name=mlp"),
    "series": ("data.source=synthetic:130,8,3", "model.name=tcn"),
    "text": ("data.source=synthetic:130,10", "data.kind=tokens", "model.name=bag"),
    "next_token": (
        "data.source=synthetic:130,8",
        "data.kind=tokens",
        "task.kind=next_token",
        "model.name=char-gru",
    ),
}
"""What makes another task, or classes of another kind of sample, of the small experiment."""


def small_experiment(method: str, *overrides: str, task: str = "classification") -> Experiment:
    """The small experiment of a method, with ``key=value`` overrides; its net is of the method's kind.

    ``task`` is one of ``TASKS``.
    """
    settings = [*TASKS[task], *overrides]
    plain = Experiment.of(override({**SMALL, "method": {"name": method, **SHALLOW.get(method, {})}}, settings))
    return variants(plain, [method], [plain.seed])[0][0]


def check_method(method: str | Experiment, folder: Path) -> None:
    """Runs every law over a method, by its name (``package.module:Class`` too) or on an experiment of one's own.

    ``folder`` takes the runs, some twenty seconds of them; an empty one, such as pytest's ``tmp_path``. Raises
    AssertionError that begins with the name of the law that is broken.
    """
    experiment = small_experiment(method) if isinstance(method, str) else method
    for law in LAWS:
        place = folder / law.__name__
        place.mkdir(parents=True)
        try:
            law(experiment, place)
        except (AssertionError, PotluckError) as error:
            raise AssertionError(f"{law.__name__}: {error or 'broken'}") from error


def device_context(ready: Prepared, round: int, device: int) -> DeviceContext:
    """What a device is asked to work on in a round."""
    return DeviceContext(
        round=round,
        device=ready.federation.fleet.devices[device],
        data=ready.shares.train[device],
        public=ready.shares.public,
        seed=ready.federation.seed,
    )


def one_exchange(ready: Prepared, device: int = 0) -> dict[str, Any]:
    """State, broadcast, local state and update of a device in the first round of a ServerMethod."""
    federation = ready.federation
    method, context = federation.method, federation.server_context(1)
    state = method.initial_state(federation.server_context(0))
    broadcast = method.broadcast(state, federation.fleet.devices[device], context)
    local_state, update = method.train(None, broadcast, device_context(ready, 1, device))
    return {"state": state, "broadcast": broadcast, "local_state": local_state or {}, "update": update}


def publications(ready: Prepared, count: int = PEERS) -> dict[int, dict[str, Any]]:
    """Local state before and after publishing, and the update, of the first peers in the first round."""
    found, method = {}, ready.federation.method
    for peer in range(count):
        context = device_context(ready, 1, peer)
        local_state = method.initial_state(context)
        after, update = method.publish(local_state, context)
        found[peer] = {"local_state": local_state, "after": after, "update": update}
    return found


def inputs_are_not_mutated(experiment: Experiment, folder: Path) -> None:
    """1: what a function is given it leaves as it is."""
    ready = prepare(experiment)
    method, devices = ready.federation.method, ready.federation.fleet.devices
    if method.traits.peers:
        published = publications(ready)
        kept = copy.deepcopy(published)
        _use_of_peers(ready, published)
        for peer, found in published.items():
            assert tree.equal(found, kept[peer]), f"what peer {peer} has was changed"
        return
    made = one_exchange(ready)
    before, context = copy.deepcopy(made), ready.federation.server_context(2)
    method.broadcast(made["state"], devices[0], context)
    method.train(made["local_state"] or None, made["broadcast"], device_context(ready, 2, 0))
    method.update_spec(made["state"], devices[0], context)
    method.aggregate(made["state"], [Reply(device=devices[0], round=1, update=made["update"])], context)
    method.model(made["state"], made["local_state"] or None, devices[0])
    for name, value in made.items():
        assert tree.equal(value, before[name]), f"{name} was changed"


def _use_of_peers(ready: Prepared, made: Mapping[int, Mapping[str, Any]]) -> None:
    method, context = ready.federation.method, device_context(ready, 1, 0)
    first = made[0]["after"]
    method.receive(first, {peer: found["update"] for peer, found in made.items() if peer}, context)
    method.update_spec(first, context)
    method.publish(first, device_context(ready, 2, 0))
    method.model(made[0]["local_state"], ready.federation.fleet.devices[0])
    combined = method.combine([found["update"] for found in made.values()])
    if combined is not None:
        method.receive_combined(first, combined, made[0]["update"], context)


def trees_survive_their_frames(experiment: Experiment, folder: Path) -> None:
    """2: state, messages and local state come out of their bytes bitwise as they went in."""
    ready = prepare(experiment)
    if ready.federation.method.traits.peers:
        made = publications(ready)
        combined = ready.federation.method.combine([found["update"] for found in made.values()])
        trees = {**made[0], "combined": combined or {}}
    else:
        trees = one_exchange(ready)
    for name, value in trees.items():
        assert tree.equal(frame.decode(frame.encode(value))[0], value), f"{name} is another one afterwards"


def training_depends_on_its_context_alone(experiment: Experiment, folder: Path) -> None:
    """3: neither what ran before nor the global generators change what a device says."""
    ready = prepare(experiment)
    peers = ready.federation.method.traits.peers

    def said() -> Any:
        return publications(ready)[0]["update"] if peers else one_exchange(ready, device=1)["update"]

    first = said()
    torch.manual_seed(12345)
    if not peers:
        one_exchange(ready, device=len(ready.federation.fleet.devices) - 1)
    assert tree.equal(said(), first), "the same device says something else"


@dataclass(frozen=True)
class Backwards:
    """Answers the requests of a round from the last to the first, and gives the responses in order."""

    inner: Engine

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        answered = [next(iter(self.inner.exchange([request], deadline_s))) for request in reversed([*requests])]
        yield from reversed(answered)


def the_order_of_devices_does_not_matter(experiment: Experiment, folder: Path) -> None:
    """3: devices that work in another order leave the same state."""
    digests = []
    for name in ("forwards", "backwards"):
        ready = prepare(experiment)
        inner = InProcess(runtime=build.make_runtime(ready.resolved, ready.shares, folder / name))
        engine: Engine = Backwards(inner) if name == "backwards" else inner
        *_, last = run_rounds(ready.federation, engine, initial_checkpoint(ready.federation), experiment.rounds)
        digests.append(last.checkpoint.digest())
    assert digests[0] == digests[1], "the state depends on the order"


class CrashError(Exception):
    """A crash between two rounds."""


@dataclass(frozen=True)
class CrashAfter:
    """A listener that crashes the run after a round."""

    round: int

    def begins(self, experiment: Experiment, folder: Path, first_round: int, warnings: Sequence[str]) -> None:
        return

    def round_done(self, line: dict[str, Any]) -> None:
        if line["round"] == self.round:
            raise CrashError


def _lasting(experiment: Experiment, rounds: int, planned: int) -> Experiment:
    """The experiment with so many rounds, on the schedule of as many as are planned in all."""
    schedule = experiment.train.schedule_rounds or planned
    train = experiment.train.model_copy(update={"schedule_rounds": schedule})
    return experiment.model_copy(update={"rounds": rounds, "train": train})


def a_resumed_run_equals_an_unbroken_one(experiment: Experiment, folder: Path) -> None:
    """4: 2n rounds = n rounds, crash, resume, n rounds = n rounds and n more; ledger and metric too."""
    half, whole = experiment.rounds, 2 * experiment.rounds
    unbroken = run.run(_lasting(experiment, whole, whole), folder / "unbroken")
    with contextlib.suppress(CrashError):
        run.run(_lasting(experiment, whole, whole), folder / "broken", CrashAfter(half))
    broken = run.resume(folder / "broken")
    _require_equal_runs(broken, unbroken)
    assert [line["round"] for line in broken.rounds] == list(range(1, whole + 1)), "not every round once"
    run.run(_lasting(experiment, half, whole), folder / "short")
    longer = run.resume(folder / "short", more_rounds=half)
    assert longer.summary["state_sha256"] == unbroken.summary["state_sha256"], "added rounds are unlike planned ones"
    assert longer.summary["rounds"] == whole, "other rounds"


def _require_equal_runs(found: Run, wanted: Run) -> None:
    for name in ("state_sha256", "metric", "metrics", "bytes", "simulated_seconds"):
        assert found.summary[name] == wanted.summary[name], f"{name}: {found.summary[name]}, {wanted.summary[name]}"
    assert found.ledger == wanted.ledger, "another ledger"


def engines_agree(experiment: Experiment, folder: Path) -> None:
    """5: two worker processes, and for peers a relay, give the state of one process."""
    here = run.run(experiment, folder / "here")
    engine = experiment.engine.model_copy(update={"kind": "pool", "workers": 2})
    _require_equal_runs(run.run(experiment.model_copy(update={"engine": engine}), folder / "pool"), here)
    if prepare(experiment).federation.method.traits.peers:
        relay = experiment.engine.model_copy(update={"relay": True})
        relayed = run.run(experiment.model_copy(update={"engine": relay}), folder / "relay")
        assert relayed.summary["state_sha256"] == here.summary["state_sha256"], "a relay changes the state"


def measured_bytes_are_those_of_the_messages(experiment: Experiment, folder: Path) -> None:
    """6: the ledger holds the tensors' bytes of what the method's functions return, and adds up what was encoded."""
    short = _lasting(experiment, 1, 1)
    found, ready = run.run(short, folder / "run"), prepare(short)
    rows = [row for row in found.ledger if row["verb"] in ("train", "post", "absorb")]
    if ready.federation.method.traits.peers:
        others = len(found.rounds[0]["cohort"]) - 1
        size = others * tree.nbytes(publications(ready, 1)[0]["update"])
        assert {row["tensor_bytes"] for row in rows} == {size}, f"expected {size} for each peer and direction"
    else:
        first = rows[0]["device"]
        made = one_exchange(ready, first)
        sizes = {row["direction"]: row["tensor_bytes"] for row in rows if row["device"] == first}
        assert sizes == {"down": tree.nbytes(made["broadcast"]), "up": tree.nbytes(made["update"])}, sizes
    for direction in ("up", "down"):
        sent = [row for row in rows if row["direction"] == direction]
        assert found.summary["bytes"][direction] == sum(row["encoded_bytes"] for row in sent), direction
        assert all(row["encoded_bytes"] > row["tensor_bytes"] for row in sent), "a frame without a header"


@dataclass(frozen=True)
class NobodyAnswers:
    """An engine whose devices are all lost, as it knows after so many seconds."""

    seconds: float

    def exchange(self, requests: Iterable[Request], deadline_s: float | None) -> Iterator[Response]:
        for request in requests:
            yield Response(request=request, status="lost", reason="no answer", seconds=self.seconds)


def no_replies_change_nothing(experiment: Experiment, folder: Path) -> None:
    """7: a round in which nobody answers leaves the state as it is, and says so."""
    federation = prepare(experiment).federation
    before = initial_checkpoint(federation)
    (result,) = run_rounds(federation, NobodyAnswers(math.inf), before, 1)
    assert result.checkpoint.digest() == before.digest(), "the state has changed"
    assert {row.status for row in result.rows} == {"lost"}, "the ledger does not say so"
    assert result.seconds == federation.fleet.deadline_s, "it did not end with the deadline"


def damaged_updates_are_refused(experiment: Experiment, folder: Path) -> None:
    """9: an update that is cut off, not finite or of another shape is a WireError that names the device."""
    ready = prepare(experiment)
    federation, device = ready.federation, ready.federation.fleet.devices[0]
    method, messages = federation.method, federation.messages
    if method.traits.peers:
        made = publications(ready, 1)[0]
        update, spec = made["update"], method.update_spec(made["after"], device_context(ready, 1, 0))
    else:
        made = one_exchange(ready)
        update, spec = made["update"], method.update_spec(made["state"], device, federation.server_context(1))
    sound = messages.write_up(update, 1, device.id, None, {})[0]
    assert tree.equal(messages.read_up(sound, 1, device.id, spec)[0], update), "a sound update is refused or changed"
    damaged = {"cut off": sound[: len(sound) // 2]}
    leaves = dict(tree.leaves(update))
    for path, value in tree.tensors(update).items():
        if value.numel():
            spoilt = {"one entry more": torch.cat([value.reshape(-1), value.reshape(-1)[:1]])}
            if value.is_floating_point():
                spoilt["not finite"] = torch.full_like(value, math.nan)
            for what, wrong in spoilt.items():
                message = tree.assemble({**leaves, path: wrong})
                damaged[f"{path}, {what}"] = messages.write_up(message, 1, device.id, None, {})[0]
    for what, data in damaged.items():
        assert _refused(lambda data=data: messages.read_up(data, 1, device.id, spec)) == device.id, (  # type: ignore[misc]
            f"{what}: not refused in this device's name; update_spec is too lenient"
        )


def _refused(read: Callable[[], Any]) -> int | None:
    """The device that a WireError names; None where there is none."""
    try:
        read()
    except WireError as error:
        return error.device
    return None


def it_is_a_frozen_value_with_a_line_about_it(experiment: Experiment, folder: Path) -> None:
    """Options are data: a frozen dataclass, whose first line says in a few words what the method is."""
    method = prepare(experiment).resolved.method
    assert method.__dataclass_params__.frozen, "the class is not frozen: @dataclass(frozen=True)"
    line = next(iter((method.__doc__ or "").strip().splitlines()), "")
    assert 10 < len(line) < 100, f"its docstring begins {line!r}, expected a line of 10 to 100 letters"


LAWS: tuple[Law, ...] = (
    it_is_a_frozen_value_with_a_line_about_it,
    inputs_are_not_mutated,
    trees_survive_their_frames,
    training_depends_on_its_context_alone,
    the_order_of_devices_does_not_matter,
    a_resumed_run_equals_an_unbroken_one,
    engines_agree,
    measured_bytes_are_those_of_the_messages,
    no_replies_change_nothing,
    damaged_updates_are_refused,
)
