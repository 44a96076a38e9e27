"""The run folder: what a run leaves behind, whole after any crash.

    experiment.toml   the resolved experiment        rounds.jsonl   a line a round
    ledger.jsonl      a row a frame                  summary.json   written at the end
    state/            manifest.json, the state, and own/ with one file a device
    model/            what each tier deploys

A checkpoint appends to the two logs, writes the state beside the old one, and renames the manifest last; each step is
forced to the disk before the next. The manifest says how long the logs were: a resume cuts what lies beyond.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import tomli_w

from potluck.core.errors import RunFolderError, WireError
from potluck.engines.federation import Checkpoint
from potluck.engines.local_state import LocalStateStore
from potluck.experiment.config import Experiment
from potluck.wire import frame

FORMAT = 1


class RunFolder:
    """A run folder that is open for writing: locked, so that there is one writer."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self.local_states = LocalStateStore(path / "state" / "own")

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> RunFolder:
        """A new run folder. Raises RunFolderError if there is something already."""
        require_free(path)
        with _told(path):
            (path / "state").mkdir(parents=True)
            folder = cls(path, _locked(path))
            write_whole(path / "experiment.toml", to_toml(experiment).encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder, to go on. Raises RunFolderError."""
        require_run(path)
        with _told(path):
            return cls(path, _locked(path))

    def close(self) -> None:
        """Lets another writer in."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save_checkpoint(
        self, checkpoint: Checkpoint, *, facts: Mapping[str, Any], line: Mapping[str, Any] | None, rows: Iterable[Any]
    ) -> None:
        """Makes ``checkpoint`` the state that a resume starts from. ``facts`` join the manifest."""
        with _uninterrupted(), _told(self.path):
            lengths = {
                "rounds": _append(self.path / "rounds.jsonl", [] if line is None else [line]),
                "ledger": _append(self.path / "ledger.jsonl", rows),
            }
            for device, round in checkpoint.acks.items():
                if round == checkpoint.round and round > 0:
                    self.local_states.sync(device, round)
            data = frame.encode({"state": checkpoint.state})
            name = f"state-{checkpoint.round:06d}.safetensors"
            write_whole(self.path / "state" / name, data)
            manifest = {
                "format": FORMAT,
                "round": checkpoint.round,
                "state": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "acks": {str(device): round for device, round in checkpoint.acks.items() if round},
                "own": {str(device): sha for device, sha in checkpoint.local_states.items() if sha},
                "codec": {str(device): sha for device, sha in checkpoint.codec.items() if sha},
                "simulated_seconds": checkpoint.simulated_seconds,
                "lengths": lengths,
                "facts": dict(facts),
            }
            write_whole(self.path / "state" / "manifest.json", json.dumps(manifest, indent=1).encode())
            _tidy(self.path / "state", name)

    def rewind(self) -> None:
        """Cuts the logs to what the manifest says: what lies beyond belongs to a round that did not finish."""
        lengths = read_manifest(self.path)["lengths"]
        for name in ("rounds", "ledger"):
            log = self.path / f"{name}.jsonl"
            size = log.stat().st_size if log.exists() else 0
            if size < lengths[name]:
                raise RunFolderError(
                    f"{log}: {size} bytes, the checkpoint says {lengths[name]}: the file was changed or cut; "
                    "the run cannot be resumed, start it anew"
                )
            if size > lengths[name]:
                os.truncate(log, lengths[name])

    def write_experiment(self, experiment: Experiment) -> None:
        """Writes the resolved experiment anew: a resume may have more rounds."""
        with _told(self.path):
            write_whole(self.path / "experiment.toml", to_toml(experiment).encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file, whole or not at all."""
        with _told(self.path):
            write_whole(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def write_frame(self, name: str, tree: Mapping[str, Any]) -> None:
        """Writes a tree as a safetensors file, whole or not at all."""
        with _told(self.path):
            (self.path / name).parent.mkdir(exist_ok=True)
            write_whole(self.path / name, frame.encode(tree))


def require_free(path: Path) -> None:
    """Raises RunFolderError if there is something at ``path`` already."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        last = "or rename it"
        if (path / "summary.json").exists():
            last = f"or add rounds to that finished run: potluck resume {path} --rounds 1"
        elif (path / "experiment.toml").exists():
            last = f"or go on with it: potluck resume {path}"
        raise RunFolderError(f"{path} exists already: choose another with --out, remove it, {last}")


def require_run(path: Path) -> None:
    """Raises RunFolderError unless ``path`` is a run folder."""
    if not path.is_dir():
        raise RunFolderError(f"{path}: no such run folder")
    if not (path / "experiment.toml").is_file():
        raise RunFolderError(f"{path}: not a run folder, it has no experiment.toml")


def read_experiment(path: Path) -> Experiment:
    """The resolved experiment of a run folder."""
    require_run(path)
    return Experiment.load(path / "experiment.toml")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the last checkpoint. Raises RunFolderError."""
    require_run(path)
    place = path / "state" / "manifest.json"
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
        complete = manifest["format"] == FORMAT and {"round", "state", "sha256", "lengths", "facts"} <= manifest.keys()
    except FileNotFoundError:
        raise RunFolderError(f"{place}: missing, the run ended before its first checkpoint; start it anew") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{place}: damaged ({error}); the run cannot be resumed, start it anew") from None
    if not complete:
        raise RunFolderError(f"{place}: damaged or of another format version; the run cannot be resumed, start it anew")
    return manifest  # type: ignore[no-any-return]


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of the last checkpoint, checked against its digest. Raises RunFolderError."""
    manifest = read_manifest(path)
    place = path / "state" / str(manifest["state"])
    try:
        data = bytearray(place.read_bytes())
        sound = hashlib.sha256(data).hexdigest() == manifest["sha256"]
        state = frame.decode(data)[0]["state"] if sound else {}
    except (OSError, WireError, KeyError) as error:
        raise RunFolderError(f"{place}: damaged ({error}); the run cannot be resumed, start it anew") from None
    if not sound:
        raise RunFolderError(f"{place}: damaged, its digest is not that of the checkpoint; start the run anew")
    return Checkpoint(
        round=manifest["round"],
        state=state,
        acks={int(device): round for device, round in manifest["acks"].items()},
        local_states={int(device): sha for device, sha in manifest["own"].items()},
        codec={int(device): sha for device, sha in manifest["codec"].items()},
        simulated_seconds=manifest["simulated_seconds"],
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off by a crash is left out. Raises RunFolderError."""
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError:
            if text.endswith("\n") or number < text.count("\n") + 1:
                raise RunFolderError(f"{path}, line {number}: not JSON, the file is damaged") from None
    return found


def to_toml(experiment: Experiment) -> str:
    """The experiment as a TOML file with every setting."""
    return tomli_w.dumps(_without_none(experiment.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _locked(path: Path) -> IO[str]:
    handle = (path / ".lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise RunFolderError(f"{path}: another run is writing here; wait for it, or choose another folder") from None
    return handle


def write_whole(path: Path, data: bytes | bytearray) -> None:
    """Writes beside, forces to the disk, renames, forces the folder to the disk."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _append(path: Path, values: Iterable[Any]) -> int:
    """Appends JSON lines, forces them to the disk, and returns the file's length."""
    text = "".join(frame.COMPACT.encode(value) + "\n" for value in values)
    with path.open("ab") as handle:
        handle.write(text.encode())
        handle.flush()
        if text:
            os.fsync(handle.fileno())
        return handle.tell()


def _tidy(state: Path, kept: str) -> None:
    for other in state.glob("state-*.safetensors*"):
        if other.name != kept:
            other.unlink(missing_ok=True)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns a failing disk into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"cannot be written ({error.strerror or error})"
        raise RunFolderError(
            f"{path}: {what}; the last checkpoint is whole. "
            f"{'Free some space' if full else 'Mend that'}, then: potluck resume {path}"
        ) from error


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
