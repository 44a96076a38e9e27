"""The experiment file, typed. Unknown keys are errors; what is left out has the default that stands here.

``load`` reads TOML; ``resolve`` (resolve.py) fills what is left open; the run folder keeps the result.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from potluck.core.errors import ConfigError
from potluck.data.partition.rules import Dirichlet, PartitionSpec
from potluck.data.table.columns import Columns
from potluck.experiment.explain import explain
from potluck.fleet.devices import Tier

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Codecs = list[str | dict[str, Annotated[float, Field(allow_inf_nan=False)]]]
"""Names, or a name with its setting: ``{ topk = 0.01 }``."""
ROUNDS, BATCH, DEADLINE_S = 20, 32, 600.0


class Section(BaseModel):
    """A table of the file: frozen, and an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Data(Section):
    """``[data]``: where samples come from and who gets which."""

    source: str = "digits"
    kind: Literal["auto", "images", "rows", "series", "tokens"] = "auto"
    """What samples are, where their shape does not say it."""
    columns: Columns = Field(default_factory=Columns)
    partition: PartitionSpec = Field(default_factory=Dirichlet)
    public: Share = 0.0
    server_samples: Natural = 0
    normalise: bool = True
    augment: Literal["none", "crop-flip"] = "none"
    limit: Natural = 0


class Model(Section):
    """``[model]``: the net."""

    name: str = "resnet8"
    norm: str = "group"
    steps: Natural | dict[str, Count] = 0
    """Depth of an ODE or equilibrium net under a method that does not set it itself; 0: the net's own."""
    init: str = ""

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, value: str) -> str:
        from potluck.nets.norms import NORMS  # noqa: PLC0415 - a wrong file is told before torch is loaded

        if value not in NORMS:
            raise ValueError(f"expected one of {', '.join(NORMS)}")
        return value


class Train(Section):
    """``[train]``: local training."""

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    epochs: Count | dict[str, Count] = 1
    batch_size: Count = BATCH
    schedule: Literal["none", "cosine", "step"] = "none"
    milestones: list[Count] = []
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    schedule_rounds: Natural = 0
    clip_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    channels_last: bool = True
    bf16: bool = False
    loss: str = "task"
    """That of the task, or a function of one's own: (outputs, targets) of a batch -> a scalar."""


class FleetTier(Section):
    """``[[fleet.tier]]``: a kind of device."""

    name: Name
    devices: Count = 1
    uplink_mbps: Positive = 10.0
    downlink_mbps: Positive = 50.0
    gflops: Positive = 10.0
    memory_mb: Positive = 1024.0
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 50.0
    availability: Annotated[float, Field(gt=0, le=1)] = 1.0

    def plain(self) -> Tier:
        """The same, for the fleet's own functions."""
        return Tier(**self.model_dump())


def _three_tiers() -> list[FleetTier]:
    return [
        FleetTier(name="phone", devices=4, uplink_mbps=1.0, downlink_mbps=5.0, gflops=5.0, memory_mb=512.0),
        FleetTier(name="tablet", devices=4, uplink_mbps=5.0, downlink_mbps=20.0, gflops=10.0, memory_mb=1024.0),
        FleetTier(name="laptop", devices=4, uplink_mbps=20.0, downlink_mbps=100.0, gflops=50.0, memory_mb=8192.0),
    ]


class FleetSection(Section):
    """``[fleet]``: who takes part."""

    tier: Annotated[list[FleetTier], Field(min_length=1)] = Field(default_factory=_three_tiers)
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    deadline_s: Positive = DEADLINE_S

    @model_validator(mode="after")
    def _distinct(self) -> FleetSection:
        names = [tier.name for tier in self.tier]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tiers are named {twice[0]!r}: give each its own name")
        return self


class Wire(Section):
    """``[wire]``: codecs per direction."""

    up: Codecs = []
    down: Codecs = []


class Evaluate(Section):
    """``[evaluate]``: when and on how much."""

    every: Count = 1
    samples: Natural = 0
    metric: str = "task"
    """The metric by which runs are judged: the task's own, another one of its metrics, or a function of one's own."""
    on: Literal["common", "own", "both"] = "common"
    """The common test data, each device's own, or the one beside the other."""
    own_test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The share of a device's data that is held out for its own test, where ``on`` asks for one."""
    better: Literal["higher", "lower"] = "higher"
    """Which way a metric of one's own is better."""


class Stop(Section):
    """``[stop]``: ends a run early, after the first round that reaches one of these; 0 is never."""

    accuracy: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    metric: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The mean metric over devices, whatever it is, is at least (where lower is better: at most) this."""
    bytes: Natural = 0
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class Track(Section):
    """``[track]``: where figures go beside the run folder, which is complete without it."""

    kind: list[str] = []


class EngineSection(Section):
    """``[engine]``: where devices run. Nothing here changes a result, but for ``threads`` and ``device``."""

    kind: Literal["inprocess", "pool", "flower", "mesh"] = "pool"
    workers: Count | Literal["auto"] = "auto"
    threads: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    relay: bool = False
    """A method among peers runs through a relay: other bytes, the same state."""
    deadline_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Seconds that a peer of a mesh waits for the others' posts; 0: that of ``[fleet]``."""
    min_peers: Natural = 1
    min_devices: Natural = 0
    """So many devices must be there on Flower; 0: all at the start, one later on."""
    join_timeout_s: Annotated[float, Field(ge=0, le=3600)] = 120.0
    linger_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Seconds that a peer of a mesh stays after its last round, for the others to finish."""
    max_frame_mb: Annotated[int, Field(ge=1, le=1024)] = 64


class Experiment(Section):
    """One experiment, as its file says it."""

    name: Name = "experiment"
    seed: Natural = 0
    rounds: Count = ROUNDS
    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    task: dict[str, Any] = {}
    """``[task]``: ``kind`` and its settings; without a kind, the data tell it."""
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "fedavg"})
    methods: dict[str, dict[str, Any]] = {}
    train: Train = Field(default_factory=Train)
    fleet: FleetSection = Field(default_factory=FleetSection)
    wire: Wire = Field(default_factory=Wire)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    stop: Stop = Field(default_factory=Stop)
    track: Track = Field(default_factory=Track)
    engine: EngineSection = Field(default_factory=EngineSection)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
        """The experiment of a TOML file, with ``key=value`` overrides. Raises ConfigError."""
        place = Path(path)
        try:
            table = tomllib.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{place}: no such experiment file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{place}: cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{place}: not TOML: {error}") from None
        table.setdefault("name", _name_of(place))
        return cls.of(override(table, overrides))

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Experiment:
        """The experiment of a table such as a TOML file holds. Raises ConfigError: one line a fault."""
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None


def _name_of(path: Path) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in path.stem)
    return kept if kept[:1].isalnum() else "experiment"


def override(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The table with each ``a.b=value`` set; the value is TOML, or a bare word for a string."""
    made = _copy(table)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: expected KEY=VALUE, such as --set train.lr=0.1")
        node = made
        *inner, last = key.strip().split(".")
        for part in inner:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set {text}: {part!r} is no table")
        node[last] = _value(value.strip())
    return made


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}
