"""Potluck's laws over the method, with everything else of the plug-in beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from potluck.testing import LAWS, Law, small_experiment


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_signmean(law: Law, tmp_path: Path) -> None:
    settings = ("data.source='stripes:200'", "model.name=twoconv", "method.step=0.5")
    law(small_experiment("signmean", *settings), tmp_path)
