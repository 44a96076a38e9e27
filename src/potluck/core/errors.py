"""The exceptions of Potluck.

    PotluckError
    ├── ConfigError (ValueError)       the experiment file or a command line is wrong: key, value, remedy
    ├── DataError (ValueError)         the data are missing, damaged or do not fit the experiment
    ├── ModelError (ValueError)        a net, or a net and a method, do not fit together
    ├── RunFolderError (ValueError)    a run folder is missing, damaged, in use or already there
    ├── WireError (ValueError)         bytes that are not what the receiver expects; names the device
    ├── TrainingError (ArithmeticError) a device's training went wrong (a loss that is not finite)
    ├── SolveError (ArithmeticError)   a solver failed and its caller asked for ``.ok()``
    ├── EngineError (RuntimeError)     an engine cannot carry frames (a worker died)
    └── MissingExtraError (ImportError) an optional dependency is not installed; says which command installs it

Every message is one sentence for a person: what was given, what was expected, what to do.
"""

from __future__ import annotations


class PotluckError(Exception):
    """Whatever Potluck raises on purpose."""


class ConfigError(PotluckError, ValueError):
    """A setting is wrong. The message names the key, the value and what was expected."""


class DataError(PotluckError, ValueError):
    """Data are missing, damaged, or do not fit the experiment."""


class ModelError(PotluckError, ValueError):
    """A net cannot be built, or does not fit its input or its method."""


class RunFolderError(PotluckError, ValueError):
    """A run folder is missing, damaged, in use, or already there."""


class WireError(PotluckError, ValueError):
    """Bytes that are not the frame that was expected; ``device`` sent them, ``reason`` says what is wrong."""

    def __init__(self, reason: str, *, device: int | None = None, tensor: str | None = None) -> None:
        self.reason = reason
        self.device = device
        self.tensor = tensor
        where = "" if tensor is None else f"tensor {tensor!r}: "
        who = "" if device is None else f"device {device}: "
        super().__init__(f"{who}{where}{reason}")


class TrainingError(PotluckError, ArithmeticError):
    """Local training failed, for instance with a loss that is not finite."""


class SolveError(PotluckError, ArithmeticError):
    """A solver did not reach what its caller demanded."""


class EngineError(PotluckError, RuntimeError):
    """An engine can no longer carry frames."""


class MissingExtraError(PotluckError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f'{needed_for} needs an optional dependency: pip install "potluck[{extra}]"')
