"""The methods: a file each, or a folder where a paper needs several; each says its name in a table ``METHODS``.

Beside them stand what a method is (protocol.py), the server of federated averaging, which several share (averaging.py),
and what several refuse in the same words (checks.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from potluck.core.plugins import Catalogue


def _method(name: str, found: Any) -> type[Any]:
    if not isinstance(found, type) or not dataclasses.is_dataclass(found) or "traits" not in dir(found):
        raise ValueError(f"got {found!r}, expected a frozen dataclass with traits, as in potluck.methods.protocol")
    return found


METHODS: Catalogue[type[Any]] = Catalogue(
    kind="method",
    key="method.name",
    package=__name__,
    table="METHODS",
    group="potluck.methods",
    made=_method,
    objects="package.module:Class",
)
