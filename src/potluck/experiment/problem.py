"""What is to be learned of what: the inputs and the learning task, told by an experiment and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from potluck.core.errors import ConfigError
from potluck.core.plugins import OBJECT
from potluck.core.types import Inputs, TargetFacts
from potluck.data.shares import Shares
from potluck.experiment.options import check_options
from potluck.experiment.resolve import Resolved
from potluck.tasks import TASKS
from potluck.tasks.task import LearningTask


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The inputs and the task: enough to make nets and methods without the data."""

    inputs: Inputs
    task: LearningTask
    kind: str
    """What ``[task] kind`` calls the task."""

    def as_table(self) -> dict[str, Any]:
        """The same for a manifest."""
        facts = self.task.facts
        return {
            "task": self.kind,
            "shape": list(self.inputs.shape),
            "vocabulary": self.inputs.vocabulary,
            "outputs": facts.outputs,
            "names": list(facts.names),
            "mean": list(facts.mean),
            "deviation": list(facts.deviation),
        }


def problem_of(resolved: Resolved, shares: Shares) -> Problem:
    """What an experiment learns of these data. Raises ConfigError for a task that they are not of."""
    asked = resolved.experiment.task.get("kind")
    if asked and not OBJECT.fullmatch(asked) and asked != shares.task:
        raise ConfigError(f'task.kind = "{asked}": the targets are of the task "{shares.task}"')
    return _problem(resolved, asked or shares.task, shares.inputs, shares.facts)


def problem_in(resolved: Resolved, facts: Mapping[str, Any]) -> Problem:
    """What a manifest says was learned; those of version 0.1 speak of classes only."""
    found = facts.get("problem")
    if found is None:
        targets = TargetFacts(outputs=facts["classes"])
        return _problem(resolved, "classification", Inputs(tuple(facts["shape"])), targets)
    targets = TargetFacts(
        outputs=found["outputs"],
        names=tuple(found["names"]),
        mean=tuple(found["mean"]),
        deviation=tuple(found["deviation"]),
    )
    return _problem(resolved, found["task"], Inputs(tuple(found["shape"]), found["vocabulary"]), targets)


def _problem(resolved: Resolved, kind: str, inputs: Inputs, facts: TargetFacts) -> Problem:
    task: Any = TASKS[kind]
    given = {key: value for key, value in resolved.experiment.task.items() if key != "kind"}
    settings = check_options("task", kind, task, given, TASKS)
    return Problem(inputs=inputs, task=task(facts=facts, **settings), kind=kind)
