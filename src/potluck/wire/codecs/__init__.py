"""The codecs: a file each, which says its members in a table ``CODECS``: a codec, or a function of its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from potluck.core.plugins import Catalogue
from potluck.wire.codec import Codec

MakeCodec = Callable[[Mapping[str, float]], Codec]
"""Settings, of which the main one stands under the codec's own name, to a codec. ValueError for wrong ones."""
PARTS = {"name", "sparse", "encode", "decode", "respec"}


def _maker(name: str, found: Any) -> MakeCodec:
    if isinstance(found, type) or not set(dir(found)) >= PARTS:
        if not callable(found):
            raise ValueError(f"got {found!r}, expected a codec, or a function of its settings")
        return found  # type: ignore[no-any-return]

    def without_settings(settings: Mapping[str, float]) -> Codec:
        if settings:
            raise ValueError(f'{name} takes no settings: write "{name}"')
        return found  # type: ignore[no-any-return]

    return without_settings


CODECS: Catalogue[MakeCodec] = Catalogue(
    kind="codec",
    key="wire",
    package=__name__,
    table="CODECS",
    group="potluck.codecs",
    made=_maker,
)
