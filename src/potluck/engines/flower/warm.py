"""A device's warm process: it has imported everything, and forks for each message that Flower brings.

Flower starts a program for each message, which would import torch, Flower and Potluck anew: most of what a short
round costs a small device. Instead it finds a program of the same name first, which hands its arguments over
(transfer.py); the fork runs Flower's own with them. Where the warm process is gone, Flower's starts as ever.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from potluck.engines.flower import transfer
from potluck.engines.flower.superlink import APPS, programs_of, running

CLIENT = "flwr-clientapp"
CAN_FORK = sys.platform == "linux"
"""Elsewhere a fork after imports is not safe."""
BIT, LOOK_S = 65536, 0.02


@contextlib.contextmanager
def warm(home: Path, log: Path) -> Iterator[None]:
    """While it lasts, messages of Flower's under this home are answered by forks of a warm process."""
    with tempfile.TemporaryDirectory(prefix="potluck-warm-") as folder:  # a socket's path has to be short
        place = str(Path(folder) / "messages")
        write_launcher(programs_of(home) / CLIENT, place, Path(sys.executable).with_name(CLIENT))
        try:
            with running(Path(sys.executable).name, ["-m", __name__, place], home, log) as process:
                while not Path(place).exists() and process.poll() is None:  # from then on callers wait
                    time.sleep(LOOK_S)
                yield
        finally:
            (programs_of(home) / CLIENT).unlink()


def write_launcher(path: Path, place: str, program: Path) -> None:
    """Writes what hands over to ``place``, or else runs ``program``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-IS", transfer.__file__, place, str(program)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o700)


def answer_all(door: socket.socket, answer: Callable[[], None]) -> None:
    """Forks for every caller; the fork has the caller's arguments, environment and output. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        caller, _ = door.accept()
        with caller, contextlib.suppress(OSError, ValueError):
            said, outputs = _heard(caller)
            if os.fork() == 0:
                door.close()
                _run(json.loads(said), outputs, answer)
            for output in outputs:
                os.close(output)
            caller.sendall(transfer.TAKEN)


def _heard(caller: socket.socket) -> tuple[bytes, list[int]]:
    said, outputs, _, _ = socket.recv_fds(caller, BIT, 2)
    while more := caller.recv(BIT):
        said += more
    return said, outputs


def _run(said: dict[str, object], outputs: list[int], answer: Callable[[], None]) -> None:
    """The life of a fork, to its end."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
        os.environ.clear()
        os.environ.update(said["environment"])  # type: ignore[call-overload]
        sys.argv = [CLIENT, *said["arguments"]]  # type: ignore[misc]
        answer()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what was imported before the fork is not ours to take down


def main() -> None:
    """Imports what a message needs, then answers until it is ended. Who calls meanwhile, waits."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads would not live on in a fork
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(sys.argv[1])
        door.listen()
        gc.disable()
        (found,) = entry_points(group="console_scripts", name=CLIENT)
        answer = found.load()
        import_module(APPS)
        import_module("potluck.engines.flower.private").poll_often_on_device()
        gc.freeze()  # forks share the pages of all this for good
        gc.enable()
        answer_all(door, answer)


if __name__ == "__main__":
    main()
