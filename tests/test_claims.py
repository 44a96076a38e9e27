"""The table of claims: every row is an experiment that resolves, and a verdict says what its parts say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from potluck.experiment.config import Experiment
from potluck.experiment.resolve import resolve

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks/claims/claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_every_row_of_every_claim_resolves(claims: ModuleType) -> None:
    used = set()
    for claim in claims.CLAIMS.values():
        for set_name in claim.sets:
            for row in claim.rows:
                family, *overrides = claims.ROWS[row]
                recipe = ROOT / f"recipes/{family}-{claims.SETS[set_name]}.toml"
                assert resolve(Experiment.load(recipe, overrides)).experiment.method["name"]
                used.add(row)
    assert used | set(claims.FRONTIER) == set(claims.ROWS), "rows that no claim uses"


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([], "open"),
        ([("a", True), ("b", True)], "holds"),
        ([("a", True), ("b", False)], "holds in part"),
        ([("a", False)], "does not hold here"),
    ],
)
def test_verdicts(claims: ModuleType, parts: list[tuple[str, bool]], verdict: str) -> None:
    assert claims._verdict(parts) == verdict
