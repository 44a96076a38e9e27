"""A method, a net, a source, a codec and a tracker of one's own, on a real SuperLink and SuperNodes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from benchmarks.fleet.flower_fleet import fleet_in
from tests.plugin_home import PLUGIN, install

from potluck.core import plugins
from potluck.experiment import run, store
from potluck.experiment.run_reader import Run

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(400)]


def test_a_plugin_on_a_real_fleet_equals_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second device's environment lacks the plug-in at first: it is refused, by name, before any training."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(plugins, "installed", plugins.installed.__wrapped__)  # looks anew, and keeps nothing
    own = tomllib.loads((PLUGIN / "experiment.toml").read_text())
    own["fleet"]["deadline_s"] = 240.0
    own["data"]["public"] = 0.1
    with fleet_in(tmp_path / "fleet", {**own, "rounds": 2}) as fleet:
        with monkeypatch.context() as without:
            without.delenv("PYTHONPATH", raising=False)
            bare = fleet.join(1)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        server = fleet.serve()
        events = fleet.out / "superlink/events.jsonl"
        for device in (0, 2, 3):
            fleet.join(device)
        fleet.wait(lambda: any(line["event"] == "refused" for line in store.read_lines(events)), 60)
        (refused,) = (line["reason"] for line in store.read_lines(events) if line["event"] == "refused")
        assert '"signmean": expected one of' in refused
        assert not fleet.rounds()
        bare.terminate()
        bare.wait()
        fleet.join(1)
        code, said = fleet.told(server)
        assert code == 0, said
        found = Run.load(fleet.out)
        native = run.run(fleet.experiment, fleet.folder / "native").summary
        assert found.summary["state_sha256"] == native["state_sha256"]
        assert {row["status"] for row in found.ledger} == {"ok"}
        assert (fleet.out / "figures.csv").read_text().startswith("round,accuracy,bytes")
