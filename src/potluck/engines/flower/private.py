"""All that we use of Flower beside its public interface. Each use has a public fall-back; tests say what moved.

Tested with flwr 1.41.x (constraints.txt). Where a version has moved a name, a fleet trains the same:

    name                                    what for                                 without it
    inflatable_object (size_of)             a message's bytes as Flower counts them  the arrays' bytes, no headers
    http_grid, run_clientapp (poll_often)   a look at an upload every second         Flower's own pauses, up to 10 s
    flwr.cli.app (ask)                      many commands in one process             a process for each command
    flwr-clientapp (warm.py)                a warm process answers a message         Flower starts one a message
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from potluck.core.errors import MissingExtraError

try:
    from flwr.app import Message
except ImportError:
    raise MissingExtraError("a fleet on Flower", "flower") from None

OBJECTS = ("flwr.supercore.inflatable.inflatable_object", ("get_all_nested_objects", "no_object_id_recompute"))
PULLS = ("flwr.supercore.inflatable.inflatable_utils", ("pull_objects", "pull_and_inflate_object_from_tree"))
ON_SERVER = ("flwr.superlink.grid.http_grid", ("pull_objects",))
ON_DEVICE = ("flwr.supernode.runtime.run_clientapp", ("pull_and_inflate_object_from_tree",))
COMMANDS = ("flwr.cli.app", ("app",))
USED = (OBJECTS, PULLS, ON_SERVER, ON_DEVICE, COMMANDS)
UPLOAD_POLL_S = 1.0
"""Seconds between two looks at an upload. Flower's own grow to 10 s, which makes rounds on thin links longer."""


def found(used: tuple[str, Sequence[str]]) -> ModuleType | None:
    """The module, if it and these names of it are where they were."""
    module, names = used
    try:
        place = import_module(module)
    except ImportError:
        return None
    return place if all(hasattr(place, name) for name in names) else None


def size_of(message: Message) -> int:
    """The bytes of a message as Flower serialises it: the objects that it pushes, pulls and counts, headers and all."""
    objects = found(OBJECTS)
    if objects is None:
        return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())
    with objects.no_object_id_recompute():  # an object's header names its parts by their digest: once is enough
        return sum(len(part.deflate()) for part in objects.get_all_nested_objects(message).values())


def poll_often() -> None:
    """Lets a server's process look at an upload every second, for as long as the SuperLink has it.

    Flower has no setting for it: the function that its grid calls is given other defaults.
    """
    _with_short_pauses(ON_SERVER, "pull_objects")


def poll_often_on_device() -> None:
    """The same of a message's process, which Flower starts when the request is announced, before it is downloaded."""
    _with_short_pauses(ON_DEVICE, "pull_and_inflate_object_from_tree")


def _with_short_pauses(used: tuple[str, Sequence[str]], name: str) -> None:
    pulls, place = found(PULLS), found(used)
    if pulls is not None and place is not None:
        pauses: dict[str, Any] = {"initial_backoff": UPLOAD_POLL_S, "backoff_cap": UPLOAD_POLL_S}
        endless = {"max_time": None, "max_tries_per_object": None}
        setattr(place, name, functools.partial(getattr(pulls, name), **endless, **pauses))


def ask(commands: Sequence[Sequence[str]]) -> Iterator[tuple[dict[str, Any], str]]:
    """(what it says as JSON, all it says) of each ``flwr WORDS``, up to the first that fails.

    All in this process, whose start takes longer than the commands.
    """
    place = found(COMMANDS)
    for words in commands:
        told = _inside(place.app, words) if place is not None else _outside(words)
        start = told.find("{")
        try:
            said: dict[str, Any] = json.loads(told[start:]) if start >= 0 else {}
        except ValueError:
            said = {}
        yield said, told
        if not said.get("success"):
            return


def _inside(app: Callable[[Sequence[str]], None], words: Sequence[str]) -> str:
    """Flower's commands print their JSON to the first stdout of the process, whatever stands in its place."""
    told, real, first = io.StringIO(), sys.stdout, sys.__stdout__
    sys.stdout = sys.__stdout__ = told  # type: ignore[misc, assignment]
    try:
        with contextlib.suppress(SystemExit):
            app(words)
    finally:
        sys.stdout, sys.__stdout__ = real, first  # type: ignore[misc]
    return told.getvalue()


def _outside(words: Sequence[str]) -> str:
    """The program itself."""
    command = [str(Path(sys.executable).with_name("flwr")), *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout


if __name__ == "__main__":
    for said, told in ask(json.loads(sys.argv[1])):
        print(json.dumps({"said": said, "told": told}), flush=True)
