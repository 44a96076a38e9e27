"""What an installation draws in, read from the metadata of what is installed here; and what is said where it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NOT_ON_A_DEVICE = {
    "datasets",
    "pandas",
    "plotly",
    "scikit-learn",
    "ray",
    "flwr-datasets",
    "pillow",
    "onnx",
    "tensorboard",
}


def own(extra: str) -> list[Requirement]:
    """What this package asks for by itself (""), or with an extra."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [Requirement(line) for line in (table["optional-dependencies"][extra] if extra else table["dependencies"])]


def wanted_by(package: str, extra: str) -> list[Requirement]:
    """The same of an installed package; nothing of one that is not here: what it draws in is not known."""
    try:
        found = [Requirement(line) for line in requires(package) or ()]
    except PackageNotFoundError:
        return []
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": extra})]


def drawn_in(*extras: str) -> set[str]:
    """The packages that installing potluck with these extras brings here, by their own metadata."""
    left = [one for extra in ("", *extras) for one in own(extra)]
    found, seen = set[str](), set[tuple[str, str]]()
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        found.add(name)
        for extra in {"", *one.extras} - {extra for package, extra in seen if package == name}:
            seen.add((name, extra))
            left += wanted_by(name, extra)
    return found


def test_a_device_on_flower_draws_in_no_laboratory() -> None:
    found = drawn_in("flower")
    assert {"flwr", "torch", "cryptography"} <= found
    assert not NOT_ON_A_DEVICE & found


def test_a_peer_draws_in_no_flower_and_no_laboratory() -> None:
    assert not ({"flwr"} | NOT_ON_A_DEVICE) & drawn_in("mesh")


def test_potluck_alone_draws_in_no_extra() -> None:
    found = drawn_in()
    assert {"torch", "safetensors", "pydantic"} <= found
    assert not ({"flwr", "eclipse-zenoh", "cryptography"} | NOT_ON_A_DEVICE) & found


def test_the_walk_follows_extras() -> None:
    assert {"datasets", "pandas", "scikit-learn", "plotly"} <= drawn_in("lab")


WITHOUT = """
import sys
sys.modules["flwr"] = None
sys.argv = ["potluck", *sys.argv[1:]]
from potluck.cli import main
main()
"""


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "digits.toml", "--insecure", "--address", "127.0.0.1:8443"],
        ["flower-app", "app", "digits.toml"],
        ["join", "127.0.0.1:8443", "--data", "npz:mine.npz", "--insecure", "--id", "0"],
    ],
    ids=lambda words: words[0],
)
def test_without_flower_its_commands_say_what_to_install(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert 'pip install "potluck[flower]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["digits.toml"], "nothing is written"


def test_without_flower_all_else_works() -> None:
    for words in (["methods"], ["serve", "--help"], ["join", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, *words], check=False, capture_output=True, text=True, env={**os.environ}
        )
        assert done.returncode == 0, done.stderr
