"""What a name in an experiment file may be: built in, an installed plug-in, or ``"package.module:object"``.

A room with a catalogue (methods, nets, sources, codecs, trackers) has a file for each member, which says what it adds
in a table of the catalogue's name, such as ``METHODS = {"fedavg": FedAvg}``. An installed package adds to it by an
entry point of its group, such as ``potluck.methods``. Nothing else need be told of a new member.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from potluck.core.errors import ConfigError, PotluckError

Member = TypeVar("Member")
OBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
"""``package.module:object``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalogue(Mapping[str, Member], Generic[Member]):
    """The members of one kind by name: those of ``package``, then those of the entry points of ``group``.

    A name that is no member may be ``package.module:object``. A plug-in cannot take the name of a member that is built
    in. ``made`` turns what was found into a member, and raises ValueError (what it is, what was expected) for another.
    """

    kind: str
    """What a member is called in messages: ``method``."""
    key: str
    """The key of the experiment file that names one."""
    package: str
    table: str
    group: str
    made: Callable[[str, Any], Member]
    error: type[PotluckError] = ConfigError
    objects: str = "package.module:object"
    """What a name of one's own looks like."""
    _built_in: dict[str, Member] = field(default_factory=dict, repr=False)
    _others: dict[str, Member] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Member:
        """The member of this name. Raises ``error`` naming the key, the name and what was expected."""
        if name in (built_in := self._read()):
            return built_in[name]
        if name in self._others:
            return self._others[name]
        told = f'{self.key} = "{name}"'
        if name in (points := installed(self.group)):
            found = loaded(told, points[name].load, f"plug-in {points[name].value}", self.error)
        elif OBJECT.fullmatch(name):
            found = own_object(told, name, self.error)
        else:
            raise self.unknown(name)
        try:
            self._others[name] = self.made(name, found)
        except ValueError as error:
            raise self.error(f"{told}: {error}") from None
        return self._others[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._read(), *installed(self.group)]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def origin(self, name: str) -> str:
        """Where a member comes from: "built in", the package that brings it, or its module."""
        if name in self._read():
            return "built in"
        point = installed(self.group).get(name)
        if point is None:
            return name.partition(":")[0]
        return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.module

    def unknown(self, name: str) -> PotluckError:
        """What to raise for a name that does not exist: what was given, what was expected."""
        close = difflib.get_close_matches(name, list(self), n=1)
        hint = f'did you mean "{close[0]}"?' if close else f'or "{self.objects}"'
        return self.error(f'{self.key} = "{name}": expected one of {", ".join(self)}; {hint}')

    def _read(self) -> dict[str, Member]:
        """The members of the package."""
        if not self._built_in:
            package = importlib.import_module(self.package)
            for found in pkgutil.iter_modules(package.__path__, f"{self.package}."):
                added = vars(importlib.import_module(found.name)).get(self.table)
                if isinstance(added, dict):  # not the catalogue itself, where a file of the room uses it
                    self._built_in.update({name: self.made(name, value) for name, value in added.items()})
        return self._built_in


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group, by name."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def own_object(told: str, name: str, error: type[PotluckError] = ConfigError) -> Any:
    """The object of ``package.module:object``. Raises ``error``; ``told`` begins its message."""
    module_name, _, wanted = name.partition(":")
    try:
        module = loaded(told, lambda: importlib.import_module(module_name), f"importing {module_name}", error)
    except PotluckError as failed:
        absent = failed.__cause__
        if isinstance(absent, ModuleNotFoundError) and f"{module_name}.".startswith(f"{absent.name}."):
            raise error(
                f"{told}: no module {absent.name!r}; run from the folder that holds it, or install it"
            ) from absent
        raise
    found = getattr(module, wanted, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(wanted, public, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        raise error(f"{told}: {module_name} has no {wanted!r}{hint}")
    return found


def loaded(told: str, work: Callable[[], Any], what: str, error: type[PotluckError] = ConfigError) -> Any:
    """What somebody else's code makes; what it raises is told in one line with its place, and is the cause."""
    try:
        return work()
    except PotluckError:
        raise
    except Exception as failed:
        frames = traceback.extract_tb(failed.__traceback__)
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        if isinstance(failed, SyntaxError):
            place = f" ({failed.filename}, line {failed.lineno})"
        elif frames and frames[-1].filename.startswith("<frozen"):  # the import system itself: the line that asked it
            asked = [frame for frame in frames if not frame.filename.startswith("<frozen")]
            place = f" ({asked[-1].filename}, line {asked[-1].lineno})" if asked else ""
        raise error(f"{told}: {what} failed: {type(failed).__name__}: {failed}{place}") from failed
