"""The plug-in of examples/, installed into an environment that has Potluck and knows nothing else of it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "examples/plugin"
OFFLINE = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation")


def install(place: Path, *, python: Path | None = None) -> None:
    """Installs the plug-in with pip, from its folder alone: for a Python, or else into the folder ``place``."""
    into = ["--python", str(python), "install"] if python else ["install", "--target", str(place)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    words = [sys.executable, "-m", "pip", *into, *OFFLINE, str(PLUGIN)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def fresh_environment(folder: Path) -> Path:
    """The Python of a new environment with the plug-in; what is installed here is seen there by a path alone."""
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env/bin/python"
    paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site / "potluck_from_outside.pth").write_text(
        "\n".join([sysconfig.get_path("purelib"), str(ROOT / "src")]) + "\n", encoding="utf-8"
    )
    install(folder, python=python)
    return python


def told(python: Path, folder: Path, *words: str) -> tuple[int, str]:
    """Runs ``potluck`` in that environment: (exit code, all that it said)."""
    done = subprocess.run(
        [str(python), "-m", "potluck", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    return done.returncode, done.stdout + done.stderr
