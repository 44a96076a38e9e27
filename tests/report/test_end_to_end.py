"""A real run, small, and its report."""

from __future__ import annotations

from pathlib import Path

import potluck
from potluck.report import write_report
from potluck.report.units import size


def test_the_report_of_a_real_run_says_what_its_summary_says(tmp_path: Path) -> None:
    table = {
        "name": "tiny",
        "rounds": 1,
        "data": {"limit": 60, "partition": {"kind": "iid"}},
        "method": {"name": "local"},
        "fleet": {"tier": [{"name": "phone", "devices": 2}, {"name": "laptop", "devices": 1}]},
        "engine": {"kind": "inprocess"},
    }
    run = potluck.run(potluck.Experiment.of(table), tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    summary = run.summary
    assert summary["state_sha256"] in page
    assert f"{100 * summary['accuracy']['mean']:.1f}%" in page
    assert size(summary["bytes"]["total"]) in page
    assert "The worst one, hatched, is device" in page
