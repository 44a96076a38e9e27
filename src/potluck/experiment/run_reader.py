"""A run folder, read: what a finished or an interrupted run says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from potluck.core.errors import ConfigError, RunFolderError
from potluck.engines.local_state import LocalStateStore
from potluck.experiment import build, store
from potluck.experiment.config import Experiment
from potluck.experiment.problem import Problem, problem_in
from potluck.experiment.resolve import resolve
from potluck.methods.protocol import deployed


@dataclass(frozen=True)
class Run:
    """A run folder. Everything is read when it is asked for."""

    path: Path

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run in a folder. Raises RunFolderError if it is none."""
        store.require_run(Path(path))
        return cls(Path(path))

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        return store.read_experiment(self.path)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """A dict per round: accuracy, bytes, seconds, who was missing."""
        return store.read_lines(self.path / "rounds.jsonl")

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """A dict per frame: round, device, direction, bytes, seconds, status."""
        return store.read_lines(self.path / "ledger.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of a finished run. Raises RunFolderError for one that is not finished."""
        try:
            found: dict[str, Any] = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunFolderError(f"{self.path}: not finished; go on with it: potluck resume {self.path}") from None
        except ValueError as error:
            raise RunFolderError(f"{self.path / 'summary.json'}: damaged ({error})") from None
        return found

    @property
    def finished(self) -> bool:
        """Whether there is a summary."""
        return (self.path / "summary.json").is_file()

    @property
    def problem(self) -> Problem:
        """What was learned of what."""
        return problem_in(resolve(self.experiment), store.read_manifest(self.path)["facts"])

    def model(self, tier: str) -> nn.Module:
        """What a device of the tier would deploy now, in evaluation mode; if personal, that of the tier's first one."""
        resolved = resolve(self.experiment)
        if tier not in resolved.tiers:
            raise ConfigError(f"tier {tier!r}: the fleet has {', '.join(resolved.tiers)}")
        facts, checkpoint = store.read_manifest(self.path)["facts"], store.read_checkpoint(self.path)
        problem = problem_in(resolved, facts)
        method = build.make_method(resolved, problem, build.make_tier_nets(resolved, problem))
        device = next(found for found in build.make_fleet(resolved).devices if found.tier == tier)
        if not method.traits.personal:
            return deployed(method, checkpoint.state, None, device).eval()
        kept = LocalStateStore(self.path / "state" / "own").load(device.id, checkpoint.acks.get(device.id, 0))
        return deployed(method, None, kept.get("own"), device).eval()
