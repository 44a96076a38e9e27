"""The ledger: a row for each frame, and what its bytes add up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from potluck.engines.result import LedgerRow


def traffic(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Encoded bytes of the rounds' work by direction; evaluation stands apart."""
    found = {"setup": 0, "up": 0, "down": 0, "evaluate": 0}
    for row in rows:
        kind = {"evaluate": "evaluate", "setup": "setup"}.get(row["verb"], row["direction"])
        found[kind] += row["encoded_bytes"]
    found["total"] = found["setup"] + found["up"] + found["down"]
    return found


def engine_traffic(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The same of the messages that an engine made of the frames; {} where no row tells."""
    told = [{**row, "encoded_bytes": row["engine_bytes"]} for row in rows if "engine_bytes" in row]
    return traffic(told) if told else {}


def as_json(rows: Iterable[LedgerRow]) -> list[dict[str, Any]]:
    """The rows as JSON values; without ``engine_bytes`` where the engine has none."""
    names = [field.name for field in dataclasses.fields(LedgerRow)]  # asdict() copies each value deeply
    always = names[:-1]
    return [{name: getattr(row, name) for name in (always if row.engine_bytes is None else names)} for row in rows]
