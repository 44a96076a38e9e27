"""A run folder, read from its files alone: finished, interrupted, or still going.

Numbers are those of the last checkpoint: the manifest says how long the logs were, and what lies beyond belongs to a
round that did not finish. A folder without a manifest is read to its end, but for a last line that was cut off.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potluck.core.errors import RunFolderError
from potluck.report import ledger, logs
from potluck.report.ledger import Ledger, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a round's evaluation found. Figures by device and domain are kept for the last evaluated round only.

    ``ad`` and ``al``: the metric on all domains and on a device's own, of personal models.
    """

    mean: float
    worst: float
    p10: float | None
    tiers: Mapping[str, float]
    devices: Mapping[int, float]
    domains: Mapping[int, Sequence[float]]
    ad: Mapping[int, float]
    al: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A line of rounds.jsonl. ``seconds`` are simulated; ``simulated_seconds`` and ``wall_seconds`` count from 1."""

    number: int
    cohort: Sequence[int]
    traffic: Traffic
    seconds: float
    simulated_seconds: float
    wall_seconds: float
    notes: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, float]
    scores: Scores | None
    metric: str = ""
    """The name of the metric, where the line says it."""
    better: str = "higher"
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Means of all metrics over devices."""
    breakdown: Mapping[str, float] = field(default_factory=dict)
    """The metric of each class, label or target, likewise."""
    own: Scores | None = None
    """On each device's own test data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A tier of the fleet, and the ids of its devices."""

    name: str
    settings: Mapping[str, Any]
    devices: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a report says of a run. ``summary`` is empty unless the run is finished.

    ``peer`` is the id of the one peer whose part of a run on real machines this is; ``config`` says of which run.
    """

    path: Path
    name: str
    method: str
    seed: int
    planned: int
    metric: str
    better: str
    """Which way the metric is better: higher or lower."""
    experiment: Mapping[str, Any]
    toml: str
    tiers: Sequence[Tier]
    rounds: Sequence[Round]
    ledger: Ledger
    summary: Mapping[str, Any]
    peer: int | None = None
    config: str = ""

    def gain(self, value: float) -> float:
        """The metric as something of which more is better."""
        return value if self.better == "higher" else -value

    @property
    def done(self) -> int:
        """The last round that stands."""
        return self.rounds[-1].number if self.rounds else 0

    @property
    def finished(self) -> bool:
        """Whether every round was made and the summary written."""
        return bool(self.summary)

    @property
    def evaluated(self) -> Sequence[Round]:
        """The rounds that were evaluated."""
        return [line for line in self.rounds if line.scores is not None]

    @property
    def scores(self) -> Scores | None:
        """What the last evaluated round found."""
        return next((line.scores for line in reversed(self.rounds) if line.scores is not None), None)

    @property
    def tier_of(self) -> Mapping[int, str]:
        """The tier of each device."""
        return {device: tier.name for tier in self.tiers for device in tier.devices}

    @property
    def traffic(self) -> Traffic:
        """The bytes of the whole run."""
        return self.ledger.total


def find(paths: Sequence[Path]) -> list[Path]:
    """The run folders among ``paths`` and directly inside them. Raises RunFolderError where there is none."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise RunFolderError(f"{path}: no such run folder")
        if (path / "experiment.toml").is_file():
            inner = [path]
        else:
            inner = sorted(child for child in path.iterdir() if (child / "experiment.toml").is_file())
        if not inner:
            raise RunFolderError(f"{path}: neither a run folder nor a folder of run folders, it has no experiment.toml")
        for child in inner:
            found.setdefault(child.resolve(), child)
    return list(found.values())


def failed(folders: Sequence[Path]) -> list[dict[str, str]]:
    """What failed in the comparisons that these folders hold: the name of each run's folder, and the reason."""
    found: list[dict[str, str]] = []
    for folder in folders:
        try:
            told = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["runs"]
            found += [{"path": str(one["path"]), "reason": str(one["reason"])} for one in told if one["reason"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no comparison; or its list is damaged, which the runs beside it do not need
    return found


def read(path: Path) -> Run:
    """The run in a folder. Raises RunFolderError: one sentence that names the file, and the line where it has some."""
    text, table = _experiment(path / "experiment.toml")
    # The manifest is read before the logs: a run that goes on meanwhile makes them longer, never shorter.
    lengths, facts = _manifest(path / "state" / "manifest.json")
    rounds = _rounds(path / "rounds.jsonl", lengths.get("rounds"))
    metric, better = _metric(rounds, table)
    try:
        return Run(
            path=path,
            name=str(table.get("name", path.name)),
            method=str(table["method"]["name"]),
            seed=int(table["seed"]),
            planned=int(table["rounds"]),
            metric=metric,
            better=better,
            experiment=table,
            toml=text,
            tiers=_tiers(table),
            rounds=rounds,
            ledger=ledger.read(path / "ledger.jsonl", lengths.get("ledger")),
            summary=_summary(path / "summary.json", rounds[-1].number if rounds else 0, int(table["rounds"])),
            peer=facts.get("peer"),
            config=str(facts.get("config", "")),
        )
    except KeyError as error:
        raise RunFolderError(f"{path / 'experiment.toml'}: damaged, {error} is missing") from None
    except RunFolderError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise RunFolderError(f"{path / 'experiment.toml'}: damaged, {error}") from None


def _metric(rounds: Sequence[Round], table: Mapping[str, Any]) -> tuple[str, str]:
    """(name, which way is better): as the rounds say, or else, in folders of version 0.1, the experiment."""
    named = next((line for line in reversed(rounds) if line.metric), None)
    if named is not None:
        return named.metric, named.better
    asked = str(table.get("evaluate", {}).get("metric", "accuracy"))
    return "accuracy" if asked == "task" else asked, "higher"


def _experiment(place: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = place.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise RunFolderError(f"{place.parent}: not a run folder, it has no experiment.toml") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{place}: damaged: {error}") from None


def _tiers(table: Mapping[str, Any]) -> list[Tier]:
    tiers: list[Tier] = []
    start = 0
    for settings in table["fleet"]["tier"]:
        stop = start + int(settings.get("devices", 1))
        tiers.append(Tier(name=str(settings["name"]), settings=settings, devices=range(start, stop)))
        start = stop
    return tiers


def _manifest(place: Path) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """(lengths of the logs at the last checkpoint, facts of the run); nothing where it is missing or damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        lengths = {"rounds": int(found["lengths"]["rounds"]), "ledger": int(found["lengths"]["ledger"])}
        return lengths, dict(found.get("facts", {}))
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def _summary(place: Path, done: int, planned: int) -> Mapping[str, Any]:
    """The summary, or nothing where there is none or where it is of fewer rounds than the run now has or wants."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        current = int(found["rounds"]) >= max(done, planned)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{place}: damaged ({error}); the other files are whole, remove it to go without"
        ) from None
    return found if current else {}


def _rounds(place: Path, length: int | None) -> list[Round]:
    """The rounds; figures by device only in the last evaluated one: a report shows no others, and they are many."""
    rounds: list[Round] = []
    last: int | None = None
    for line in logs.made(place, length, _round):
        if line.scores is not None:
            if last is not None:
                rounds[last] = _without_devices(rounds[last])
            last = len(rounds)
        rounds.append(line)
    return rounds


def _without_devices(line: Round) -> Round:
    assert line.scores is not None
    return replace(
        line, scores=replace(line.scores, devices={}, domains={}, ad={}, al={}), metrics={}, breakdown={}, own=None
    )


def _round(line: Mapping[str, Any]) -> Round:
    sent = line["bytes"]
    return Round(
        number=int(line["round"]),
        cohort=[int(device) for device in line["cohort"]],
        traffic=Traffic(**{kind: int(sent.get(kind, 0)) for kind in ledger.KINDS}),
        seconds=float(line["seconds"]),
        simulated_seconds=float(line["simulated_seconds"]),
        wall_seconds=float(line["wall_seconds"]),
        notes={
            str(tier): {str(name): float(value) for name, value in notes.items() if _is_number(value)}
            for tier, notes in line.get("notes", {}).items()
        },
        parts={str(part): float(seconds) for part, seconds in line.get("parts", {}).items()},
        scores=_scores(line.get("metric") or line["accuracy"]) if line.get("metric") or line.get("accuracy") else None,
        metric=str(line.get("metric", {}).get("name", "")),
        better=str(line.get("metric", {}).get("better", "higher")),
        metrics={str(name): float(value) for name, value in line.get("metrics", {}).items()},
        breakdown={str(name): float(value) for name, value in line.get("breakdown", {}).items()},
        own=_scores(line["own"]) if line.get("own") else None,
    )


def _scores(found: Mapping[str, Any]) -> Scores:
    p10 = found.get("p10")
    return Scores(
        mean=float(found["mean"]),
        worst=float(found["worst"]),
        p10=None if p10 is None else float(p10),
        tiers={str(tier): float(value) for tier, value in found.get("tiers", {}).items()},
        devices={int(device): float(value) for device, value in found.get("devices", {}).items()},
        domains={int(device): [float(v) for v in values] for device, values in found.get("domains", {}).items()},
        ad={int(device): float(value) for device, value in found.get("ad", {}).get("devices", {}).items()},
        al={int(device): float(value) for device, value in found.get("al", {}).get("devices", {}).items()},
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
