"""Run folders, built by hand as files: what the report reads, without a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

TIERS = (("phone", 2), ("laptop", 1))
UP, DOWN, ASK, ANSWER = 1000, 2000, 10, 20
MakeRun = Callable[..., Path]


def write_toml(path: Path, table: Mapping[str, Any]) -> None:
    import tomli_w  # noqa: PLC0415  only this needs it

    path.write_text(tomli_w.dumps(table), encoding="utf-8")


def experiment(name: str, method: str, seed: int, rounds: int, tiers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "rounds": rounds,
        "data": {"source": "digits", "partition": {"kind": "dirichlet", "alpha": 0.5}},
        "method": {"name": method},
        "train": {"lr": 0.05, "epochs": {tier: 1 for tier, _ in tiers}},
        "fleet": {"deadline_s": 600.0, "tier": [{"name": t, "devices": n, "uplink_mbps": 1.0} for t, n in tiers]},
        "evaluate": {"every": 1, "metric": "accuracy"},
        "engine": {"kind": "inprocess"},
    }


def rows(number: int, device: int, tier: str, wrong: tuple[str, str] | None, personal: bool) -> list[dict[str, Any]]:
    status, reason = wrong or ("ok", "")
    base = {"round": number, "device": device, "tier": tier, "tensor_bytes": 900, "seconds": 1.5}
    made = [
        base | {"verb": "train", "direction": way, "encoded_bytes": size, "status": status, "reason": reason}
        for way, size in (("down", DOWN), ("up", UP))
    ]
    if personal:
        made += [
            base | {"verb": "evaluate", "direction": way, "encoded_bytes": size, "status": "ok", "reason": ""}
            for way, size in (("down", ASK), ("up", ANSWER))
        ]
    return made


def round_line(number: int, tier_of: Sequence[str], accuracy: Mapping[str, Any]) -> dict[str, Any]:
    many = len(tier_of)
    return {
        "round": number,
        "cohort": list(range(many)),
        "status": {},
        "bytes": {"setup": 0, "up": UP * many, "down": DOWN * many, "evaluate": 0, "total": (UP + DOWN) * many},
        "seconds": 1.5,
        "simulated_seconds": 1.5 * number,
        "wall_seconds": 0.5 * number,
        "notes": {tier: {"loss": 1.0 / number, "samples": 12.0} for tier in dict.fromkeys(tier_of)},
        "parts": {"encode": 0.1, "device train": 0.2},
        "accuracy": accuracy,
    }


def accuracy_of(number: int, tier_of: Sequence[str], personal: bool, domains: bool) -> dict[str, Any]:
    values = {device: min(0.99, 0.1 * number + 0.01 * device) for device in range(len(tier_of))}
    tiers: dict[str, list[float]] = {}
    for device, tier in enumerate(tier_of):
        tiers.setdefault(tier, []).append(values[device])
    found: dict[str, Any] = {
        "mean": sum(values.values()) / len(values),
        "worst": min(values.values()),
        "p10": min(values.values()),
        "tiers": {tier: sum(of) / len(of) for tier, of in tiers.items()},
    }
    if personal:
        found["devices"] = {str(device): value for device, value in values.items()}
    if domains:
        found["domains"] = {str(device): [value, value / 2] for device, value in values.items()}
    return found


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that builds a run folder and returns its path."""

    def make(
        folder: str = "run",
        *,
        name: str = "digits",
        method: str = "fedavg",
        seed: int = 0,
        rounds: int = 3,
        done: int | None = None,
        tiers: Sequence[tuple[str, int]] = TIERS,
        personal: bool = False,
        domains: bool = False,
        wrong: Mapping[tuple[int, int], tuple[str, str]] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        write_toml(path / "experiment.toml", experiment(name, method, seed, rounds, tiers) | dict(changes or {}))
        tier_of = [tier for tier, many in tiers for _ in range(many)]
        lines, ledger = [], []
        last: dict[str, Any] = {}
        for number in range(1, (rounds if done is None else done) + 1):
            last = accuracy_of(number, tier_of, personal, domains)
            lines.append(round_line(number, tier_of, last))
            for device, tier in enumerate(tier_of):
                ledger += rows(number, device, tier, (wrong or {}).get((number, device)), personal)
        (path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
        if done is None:
            summary = {
                "rounds": rounds,
                "parameters": {tier: 1234 for tier, _ in tiers},
                "wall_seconds": 0.5 * rounds,
                "peak_rss_bytes": 5_000_000,
                "state_sha256": "ab" * 32,
            }
            (path / "summary.json").write_text(json.dumps(summary))
        return path

    return make
