"""The server's part of a run on real devices: a SuperLink, the devices' keys, the run, and how it goes on.

    run folder/superlink/   home (Flower's), state.db, app, superlink.log, events.jsonl, nodes.json, serve.json

The run itself is done by the ServerApp (server_app.py) into the run folder; this process watches it. The same command
goes on where a run stopped: a new run of Flower's, the same run folder, the same result.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potluck.core.errors import ConfigError, EngineError, RunFolderError
from potluck.deploy.flower_app import on_flower, write_app
from potluck.deploy.server_app import begin_run, events_of
from potluck.engines.flower.superlink import (
    START_S,
    Address,
    Control,
    address_of,
    alive,
    fault_of,
    require_free_port,
    running,
    tail,
)
from potluck.engines.security.certificates import peer_name, require_valid, write_ssh_public
from potluck.experiment import store
from potluck.experiment.config import Experiment, Stop
from potluck.experiment.listener import SILENCE, Listener
from potluck.experiment.resolve import Resolved
from potluck.experiment.run_reader import Run

LOOK_S = 0.3
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where a run is served: the address, and the folder of certificates (None: --insecure)."""

    address: str
    certificates: Path | None

    def checked(self, devices: int) -> Address:
        """The address. Raises ConfigError for what is missing, expired, or taken."""
        folder = self.certificates
        address = address_of(self.address, folder / "ca.pem" if folder else None, folder is None)
        names = ["server", *(peer_name(device) for device in range(devices))]
        for name in names if folder else []:
            assert folder is not None, "checked"
            require_valid(folder / f"{name}.pem", f"potluck certificates DIR --devices {devices}")
        require_free_port(address)
        return address


def serve(
    experiment: Experiment,
    options: ServeOptions,
    out: Path,
    listener: Listener = SILENCE,
    tell: Tell = lambda event: None,
) -> Run:
    """Serves the experiment into ``out``, or goes on with what is there. Raises PotluckError."""
    resolved = on_flower(experiment)
    experiment, devices = resolved.experiment, resolved.devices
    address = options.checked(devices)
    place = out / "superlink"
    if (out / "experiment.toml").exists():
        _require_same(resolved, out)
        (out / "summary.json").unlink(missing_ok=True)
    else:
        begin_run(experiment, out)
    place.mkdir(exist_ok=True)
    known = json.loads((place / "serve.json").read_text()) if (place / "serve.json").exists() else {}
    run = str(known.get("run", uuid.uuid4().hex))
    folder = None if options.certificates is None else str(options.certificates.resolve())
    note = {"run": run, "address": options.address, "certificates": folder}
    (place / "serve.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    listener.begins(experiment, out, store.read_manifest(out)["round"], ())
    control = Control(home=place / "home", address=address)
    with running(
        "flower-superlink", _arguments(address, options, place), place / "home", place / "superlink.log"
    ) as link:
        _await(link, address.dialled(), place / "superlink.log")
        control.connect()
        shutil.rmtree(place / "app", ignore_errors=True)
        write_app(place / "app", experiment, out, run)
        events_of(out).write_text("")
        number = _start(control, options, place, devices)
        _watch(link, out, listener, tell)
        _note_bytes(control, number, place)
    return Run.load(out)


def serve_again(out: Path, more_rounds: int, listener: Listener, tell: Tell) -> Run:
    """Goes on with a run that was served, at the same address; for ``more_rounds`` more."""
    note = out / "superlink" / "serve.json"
    if not note.exists():
        raise RunFolderError(f"{out}: it was started with flwr run, and goes on with it (same run folder)")
    held, experiment = json.loads(note.read_text()), store.read_experiment(out)
    if more_rounds:
        base = experiment.rounds
        experiment = experiment.model_copy(update={"rounds": base + more_rounds, "stop": Stop()})
    folder = held["certificates"]
    return serve(
        experiment, ServeOptions(address=held["address"], certificates=folder and Path(folder)), out, listener, tell
    )


def _require_same(resolved: Resolved, out: Path) -> None:
    """Raises RunFolderError where the folder is of another experiment."""
    held, now = store.read_manifest(out)["facts"]["config"], resolved.digest
    if held != now:
        raise RunFolderError(
            f"{out} holds a run of another experiment (config digest {held[:12]}, this file's {now[:12]}): choose "
            "another --out"
        )


def _arguments(address: Address, options: ServeOptions, place: Path) -> list[str]:
    where = ["--host", address.host.strip("[]"), "--port", str(address.port), "--database", str(place / "state.db")]
    where.append("--disable-runtime-dependency-installation")
    if options.certificates is None:
        return [*where, "--insecure"]
    folder = options.certificates
    keys = ["--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key")]
    return [*where, *keys, "--ssl-ca-certfile", str(folder / "ca.pem"), "--enable-supernode-auth"]


def _await(link: subprocess.Popen[bytes], address: Address, log: Path) -> None:
    """Until the SuperLink answers. Raises EngineError."""
    until, fault = time.monotonic() + START_S, ""
    while time.monotonic() < until:
        if link.poll() is not None:
            raise EngineError(f"the SuperLink ended at once: {tail(log)}; see {log}")
        fault, may_mend = fault_of(address)
        if not fault:
            return
        if not may_mend:
            raise ConfigError(fault)
        time.sleep(LOOK_S)
    raise EngineError(f"the SuperLink did not answer within {START_S:g} s: {fault}; see {log}")


def _start(control: Control, options: ServeOptions, place: Path, devices: int) -> str:
    """Makes the devices' keys known, in order, once, and submits the run; its number at Flower.

    What number belongs to which node stands in nodes.json.
    """
    nodes = place / "nodes.json"
    known: dict[str, int] = json.loads(nodes.read_text()) if nodes.exists() else {}
    fresh = [device for device in range(devices) if device not in known.values() and options.certificates is not None]
    for device in fresh:
        assert options.certificates is not None, "checked"
        write_ssh_public(options.certificates / f"{peer_name(device)}.pem", place / f"{peer_name(device)}.pub")
    said = control.calls(
        [["supernode", "register", str(place / f"{peer_name(device)}.pub"), "fleet"] for device in fresh]
        + [["run", str(place / "app"), "fleet"]]
    )
    known |= {str(found["node-id"]): device for found, device in zip(said, fresh, strict=False)}
    nodes.write_text(json.dumps(known))
    return str(said[-1]["run-id"])


def _watch(link: subprocess.Popen[bytes], out: Path, listener: Listener, tell: Tell) -> None:
    """Shows rounds and events until the run is over. Raises EngineError where it failed."""
    shown, heard = len(store.read_lines(out / "rounds.jsonl")), 0
    while True:
        events = store.read_lines(events_of(out))
        lines = store.read_lines(out / "rounds.jsonl")
        fresh, heard = events[heard:], len(events)
        for event in fresh:
            tell(event)
        for line in lines[shown:]:
            listener.round_done(line)
        shown = max(shown, len(lines)) if len(lines) >= shown else len(lines)
        for event in fresh:
            if event["event"] == "failed":
                raise EngineError(str(event["reason"]))
            if event["event"] == "done":
                return
        if link.poll() is not None:
            raise EngineError(f"the SuperLink ended; the last checkpoint is whole: potluck resume {out}")
        apps = [int(event["pid"]) for event in events if event["event"] == "begins"]
        if apps and Path("/proc").exists() and not alive(apps[-1]):
            raise EngineError(f"the run's process was ended; the last checkpoint is whole: potluck resume {out}")
        time.sleep(LOOK_S)


def _note_bytes(control: Control, number: str, place: Path) -> None:
    """Writes Flower's own count of the run's bytes beside ours; it counts for the whole run only."""
    with contextlib.suppress(EngineError, KeyError, OSError, subprocess.SubprocessError):
        found = control.calls([["list", "fleet", "--run-id", number]])[0]
        (place / "bytes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
