"""The lines of a run folder's logs, one by one, so that a ledger of millions of rows is never held."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from potluck.core.errors import RunFolderError

Made = TypeVar("Made")


def made(place: Path, length: int | None, make: Callable[[Mapping[str, Any]], Made]) -> Iterator[Made]:
    """``make`` of each line within the first ``length`` bytes (None: all). A missing log has no lines.

    A last line without its end was cut off by a crash and is left out. Any other line that is no JSON, or that
    ``make`` cannot use, is a RunFolderError that names file and line.
    """
    for number, line in _lines(place, length):
        if not isinstance(line, dict):
            raise RunFolderError(f"{place}, line {number}: damaged, expected a JSON object")
        try:
            yield make(line)
        except KeyError as error:
            raise RunFolderError(f"{place}, line {number}: damaged, {error} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise RunFolderError(f"{place}, line {number}: damaged, {error}") from None


def _lines(place: Path, length: int | None) -> Iterator[tuple[int, Any]]:
    position = 0
    try:
        with place.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                position += len(raw)
                if length is not None and position > length:
                    return
                if raw.strip():
                    try:
                        yield number, json.loads(raw)
                    except ValueError:
                        if not raw.endswith(b"\n"):
                            return
                        raise RunFolderError(f"{place}, line {number}: damaged, not JSON") from None
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunFolderError(f"{place}: cannot be read ({error.strerror or error})") from None
