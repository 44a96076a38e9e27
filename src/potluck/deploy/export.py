"""What a device deploys, as a file that other programs read.

    .safetensors   the weights by name; a low-rank layer keeps its two factors, ``<layer>.u`` and ``<layer>.v``
    .pt2           the traced net (``torch.export``), weights included, for any batch size
    .onnx          the same for ONNX runtimes; checked with onnxruntime against PyTorch before it stays

A traced net computes what the net computes in evaluation: an ODE net at its number of steps, an equilibrium net at its
number of evaluations, a compact net through its small layers.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core.errors import ConfigError, MissingExtraError, ModelError
from potluck.core.types import Inputs
from potluck.experiment import store
from potluck.experiment.run_reader import Run
from potluck.nets.weights import weights_of
from potluck.nets.zoo import count_parameters
from potluck.wire import frame

TOLERANCE = 1e-4
"""The largest difference of a logit between a traced net and the net itself."""
CHECKED = (1, 5)
"""The batch sizes of that comparison; the net is traced with another one."""
TRACED = 3
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written; ``difference`` is the largest of a logit, 0 for the weights themselves."""

    path: Path
    bytes: int
    parameters: int
    difference: float

    def line(self) -> str:
        """For a person."""
        checked = f", largest difference {self.difference:.1e}" if self.difference else ""
        return f"{self.path}: {self.parameters:,} parameters, {self.bytes:,} bytes{checked}"


def export(folder: str | Path, tier: str, to: str | Path) -> Exported:
    """Writes the model that a device of ``tier`` deploys to ``to``; its ending says in which form.

    Beside it ``to``.json says what it is given and what it says (``card``).

    Raises RunFolderError for a folder that holds no run, ConfigError for an unknown tier or ending, ModelError for a
    net that cannot be traced or whose file computes something else, MissingExtraError where ONNX is not installed.
    """
    path = Path(to)
    if path.suffix not in WRITERS:
        raise ConfigError(f"--to {path}: expected a file name that ends in {', '.join(WRITERS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--to {path}: there is no folder {path.parent}")
    run = Run.load(folder)
    net = run.model(tier).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    inputs = run.problem.inputs
    beside = path.with_suffix(path.suffix + ".json")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        difference = WRITERS[path.suffix](net.eval(), inputs, partial)
        partial.replace(path)
        beside.write_text(json.dumps(card(run), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to {path}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path=path, bytes=path.stat().st_size, parameters=count_parameters(net), difference=difference)


def card(run: Run) -> dict[str, Any]:
    """What a model of the run is given and what it says: how samples are to be prepared, and outputs to be read.

    ``inputs``: kind, shape, vocabulary, and mean and deviation of each channel or feature (of bytes as value / 255).
    ``outputs``: the task, names, and of numbers mean and deviation, by which what it says is multiplied and moved.
    ``layout``: of a table, by what its rows are encoded.
    """
    facts, problem = store.read_manifest(run.path)["facts"], run.problem
    place = run.path / "layout.json"
    targets = problem.task.facts
    return {
        "inputs": {
            "kind": problem.inputs.kind,
            "shape": list(problem.inputs.shape),
            "vocabulary": problem.inputs.vocabulary,
            **facts.get("normalisation", {}),
        },
        "outputs": {
            "task": problem.kind,
            "count": problem.task.outputs,
            "names": list(targets.names),
            "mean": list(targets.mean),
            "deviation": list(targets.deviation),
        },
        "layout": json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None,
    }


def _write_safetensors(net: nn.Module, inputs: Inputs, path: Path) -> float:
    path.write_bytes(frame.encode(weights_of(net)))
    return 0.0


def _write_pt2(net: nn.Module, inputs: Inputs, path: Path) -> float:
    with _quiet():
        program = _traced(net, inputs)
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    return _require_same(net, inputs, loaded, path)


def _write_onnx(net: nn.Module, inputs: Inputs, path: Path) -> float:
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"ONNX ({package})", "export")
    import onnxruntime  # noqa: PLC0415 - an optional dependency

    with _quiet():
        traced = _traced(net, inputs)
        try:
            program = torch.onnx.export(
                traced, (_sample(inputs, TRACED),), input_names=["x"], output_names=["logits"], verbose=False
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise ModelError(
                f"{type(net).__name__} has no ONNX form, as one of its operations has none there (such as the linear "
                "solve of Anderson acceleration): choose .pt2"
            ) from error
        assert program is not None
        program.save(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def call(x_B: Tensor) -> Tensor:
        (logits,) = session.run(None, {session.get_inputs()[0].name: x_B.numpy()})
        return torch.from_numpy(logits)

    return _require_same(net, inputs, call, path)


WRITERS: dict[str, Callable[[nn.Module, Inputs, Path], float]] = {
    ".safetensors": _write_safetensors,
    ".pt2": _write_pt2,
    ".onnx": _write_onnx,
}


def _traced(net: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The net as one graph, for any batch size. ModelError if its code depends on the values it computes."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(net, (_sample(inputs, TRACED),), dynamic_shapes=({0: batch},), strict=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{type(net).__name__} cannot be traced: {reason}") from error


def _sample(inputs: Inputs, batch: int) -> Tensor:
    return inputs.example(batch)


def _require_same(net: nn.Module, inputs: Inputs, call: Callable[[Tensor], Any], path: Path) -> float:
    """The largest difference of a logit. ModelError above the tolerance: the file computes something else."""
    with torch.no_grad():
        pairs = [(net(x_B), call(x_B)) for x_B in (_sample(inputs, batch) for batch in CHECKED)]
    found = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    if not found <= TOLERANCE:
        raise ModelError(
            f"{path.suffix}: its logits differ from the net's by {found:.1e}, more than {TOLERANCE:g}: not written"
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters announce their progress and their own deprecations, which are no concern of whoever exports."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
