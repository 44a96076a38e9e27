"""An experiment for data that somebody has: what they seem to be, and a file with a comment at each choice."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potluck.core.errors import ConfigError
from potluck.core.types import Inputs
from potluck.data.source import Reading
from potluck.data.sources import SOURCES, kind_of, load
from potluck.data.sources.table import first_table
from potluck.data.table.columns import Columns
from potluck.data.table.roles import guess, has_header
from potluck.experiment.config import Experiment
from potluck.experiment.prepare import Prepared, prepare

FORMS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".npz": "npz"}
TABLES = ("csv", "parquet", "jsonl")
NETS = {"images": "resnet8", "rows": "mlp", "series": "gru", "tokens": "bag"}
MOST_DEVICES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """What was understood, a line each, and the experiment file, which runs as it is."""

    understood: Sequence[str]
    text: str


def suggest(data: str, *, target: str = "", ids: Sequence[str] = (), kind: str = "", name: str = "") -> Suggestion:
    """An experiment for a file, or a source such as ``csv:FILE``. It was prepared once, so it can run.

    Raises DataError or ConfigError for what cannot be read.
    """
    source = _source(data)
    form, where = kind_of(source)
    told: Sequence[str] = ()
    understood, columns, task, devices = [f"source   {source}"], Columns(), "", 0
    if form in TABLES:
        table = first_table(form, where, columns)
        if form == "csv" and not has_header(table.column_names):
            columns = Columns(names=[f"column{place + 1}" for place in range(table.num_columns)])
            table = first_table(form, where, columns)
        roles = guess(table, source, target, ids)
        told, task, devices = roles.told, roles.task, roles.devices
        columns = roles.columns.model_copy(update={"names": columns.names})
        if columns.names:
            told = ("the file has no header, so its columns are numbered", *told)
        understood.append(f"table    {table.num_rows:,} rows, {table.num_columns} columns")
        understood.append(f"target   {columns.target}")
    elif target or ids:
        raise ConfigError(f"--target and --id name columns of a table, and {source} is none: leave them out")
    reading = Reading(columns=columns, task=task, kind=kind, column="id_train" if form == "npz" else None)
    found = load(source, replace(reading, column=None))
    owners = 0 if found.owner_train is None else int(found.owner_train.max()) + 1
    devices = devices or owners
    understood.append(f"samples  {len(found.x_train):,} to train on, {len(found.x_test):,} to test on: {found.inputs}")
    understood.append(f"task     {found.task}: {_outputs(found.facts.outputs, found.facts.names, found.task)}")
    if devices:
        by = ", ".join(columns.ids) or ("roles" if form == "text" else "id_train")
        understood.append(f"devices  {devices} natural ones, by {by}")
    understood += [f"         {line}" for line in told]
    text = _text(
        source=source,
        kind=kind,
        columns=columns,
        task=found.task,
        inputs=found.inputs,
        devices=devices,
        name=name or _name(where or form),
        comments=told,
    )
    ready = prepare(Experiment.of(tomllib.loads(text)))
    understood.append(f"net      {ready.experiment.model.name}, {_devices(ready)}")
    return Suggestion(understood=understood, text=text)


def _source(data: str) -> str:
    """The source that a path stands for; a source as it is."""
    if kind_of(data)[0] in list(SOURCES):
        return data
    path = Path(data).expanduser()
    form = FORMS.get(path.suffix.lower(), "text" if path.suffix.lower() == ".txt" else "")
    if path.is_dir():
        form = next((FORMS[one.suffix] for one in sorted(path.glob("train.*")) if one.suffix in FORMS), "folder")
    if not form:
        raise ConfigError(
            f"--data {data}: expected a file that ends in {', '.join(FORMS)} or .txt, a folder of images per "
            "class or with "
            f"train and test, or one of {', '.join(SOURCES[one].form for one in SOURCES)}"
        )
    return f"{form}:{data}"


def _name(where: str) -> str:
    stem = Path(where.split(",", maxsplit=1)[0]).stem or "experiment"
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in stem)
    return kept if kept[:1].isalnum() else "experiment"


def _outputs(outputs: int, names: Sequence[str], task: str) -> str:
    what = {"classification": "classes", "multilabel": "labels", "regression": "numbers", "next_token": "tokens"}
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{outputs} {what.get(task, 'outputs')}" + (f" ({shown})" if names and task != "next_token" else "")


def _devices(ready: Prepared) -> str:
    sizes = [len(shard) for shard in ready.shares.train]
    return f"{len(sizes)} devices of {min(sizes):,} to {max(sizes):,} samples"


def _text(
    *,
    source: str,
    kind: str,
    columns: Columns,
    task: str,
    inputs: Inputs,
    devices: int,
    name: str,
    comments: Sequence[str],
) -> str:
    """The file, section by section."""
    natural = devices > 0
    count = min(devices, MOST_DEVICES) if natural else 12
    net = "char-gru" if task == "next_token" else NETS[inputs.kind]
    lines = [
        "# Written by potluck init: look it over, then run it as it is with `potluck run`.",
        f"name = {json.dumps(name)}",
        "rounds = 20",
        "",
        "[data]",
        f"source = {json.dumps(source)}",
    ]
    if kind:
        lines.append(f'kind = "{kind}"  # what samples are')
    if natural:
        few = f", largest = {count}" if devices > count else ""
        lines += [f'partition = {{ kind = "column"{few} }}  # a device for each natural id: {devices} there are']
    else:
        lines += ['partition = { kind = "dirichlet", alpha = 0.5 }  # classes are shared out unevenly; "iid" is evenly']
    table = _changed(columns)
    if table:
        lines += ["", "[data.columns]", *(f"# {comment}" for comment in comments)]
        lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
    lines += ["", "[task]", f'kind = "{task}"  # the data tell it; one could also set classification, regression, ...']
    if task == "regression":
        lines.append('error = "mse"  # or "mae", "huber", where a few rows are far off')
    lines += ["", "[model]", f'name = "{net}"  # potluck models lists them', "", *_train(net, task)]
    lines += ["", *_fleet(count)]
    return "\n".join(lines) + "\n"


def _train(net: str, task: str) -> list[str]:
    if net in ("bag", "char-gru"):
        rate = 'optimiser = "adam"  # embeddings of rare words hardly move with plain SGD\nlr = 0.005'
    elif net == "gru":
        rate = "lr = 0.1"
    else:
        rate = "lr = 0.05"
    lines = ["[train]", *rate.split("\n"), "epochs = 1  # on its own data, each round", "batch_size = 32"]
    return [*lines, "clip_norm = 1.0  # numbers far off would tear the net away"] if task == "regression" else lines


def _fleet(devices: int) -> list[str]:
    """Three tiers of unequal devices; one where there are too few for three."""
    shares = [devices] if devices < 3 else [devices // 3, devices // 3, devices - 2 * (devices // 3)]
    kinds = [("phone", 1.0, 5.0, 5.0), ("tablet", 5.0, 20.0, 10.0), ("laptop", 20.0, 100.0, 50.0)][-len(shares) :]
    lines = ["# Who takes part: replace links and speeds by those of your devices (potluck probe measures one)."]
    for (tier, up, down, gflops), many in zip(kinds, shares, strict=True):
        lines += ["[[fleet.tier]]", f'name = "{tier}"', f"devices = {many}"]
        lines += [f"uplink_mbps = {up}", f"downlink_mbps = {down}", f"gflops = {gflops}", ""]
    return lines[:-1]


def _changed(columns: Columns) -> Mapping[str, Any]:
    usual = Columns()
    return {key: value for key, value in columns.model_dump().items() if value != getattr(usual, key)}


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
