"""What keeps a server from being started is a line, and nothing is written; no process is started here."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.core.errors import ConfigError, RunFolderError
from potluck.deploy.flower_app import on_flower
from potluck.deploy.serve import ServeOptions, serve, serve_again
from potluck.deploy.server_app import begin_run
from potluck.engines.flower.superlink import free_port
from potluck.engines.security.certificates import write_certificates
from potluck.experiment.config import Experiment
from potluck.experiment.listener import SILENCE

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_certificates(folder / "good", 4, {})
    write_certificates(folder / "few", 3, {}, authority_from=folder / "good")
    write_certificates(folder / "old", 4, {}, days=-1, authority_from=folder / "good")
    return folder


WRONG = {
    "an expired certificate": ("old", 0, [], r"server\.pem: expired on .*; make new ones with: potluck certificates"),
    "a device without a key": ("few", 0, [], r"peer-3\.pem: no such file; make it with: potluck certificates .* 4"),
    "no certificates at all": ("nowhere", 0, [], "expected the CA's certificate, ca.pem"),
    "more devices than there are": ("good", 0, ["engine.min_devices=5"], "min_devices = 5: the fleet has 4"),
    "a deadline below Flower's floor": ("good", 0, ["fleet.deadline_s=5"], "expected 15 at least"),
    "a port in use": ("good", 1, [], "cannot listen there .*; choose another port"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_cannot_work_says_so(small: MakeExperiment, keys: Path, tmp_path: Path, name: str) -> None:
    folder, taken, overrides, told = WRONG[name]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        served = ServeOptions(
            address=f"127.0.0.1:{other.getsockname()[1] if taken else free_port()}", certificates=keys / folder
        )
        with pytest.raises(ConfigError, match=told):
            serve(small("fedavg", *overrides), served, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_experiment_is_not_gone_on_with(small: MakeExperiment, keys: Path, tmp_path: Path) -> None:
    begin_run(on_flower(small("fedavg")).experiment, tmp_path / "run")
    served = ServeOptions(address=f"127.0.0.1:{free_port()}", certificates=keys / "good")
    with pytest.raises(RunFolderError, match=r"holds a run of another experiment .*: choose another --out"):
        serve(small("fedavg", "seed=1"), served, tmp_path / "run")


def test_a_run_that_flwr_began_goes_on_with_it(small: MakeExperiment, tmp_path: Path) -> None:
    begin_run(on_flower(small("fedavg")).experiment, tmp_path / "run")
    with pytest.raises(RunFolderError, match="started with flwr run, and goes on with it"):
        serve_again(tmp_path / "run", 0, SILENCE, lambda event: None)
