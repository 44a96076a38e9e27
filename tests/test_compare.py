"""Several methods side by side: what fails is named and the rest goes on; what it takes to reach an accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from potluck.experiment import compare, run, store
from potluck.experiment.config import Experiment
from potluck.experiment.listener import Silence
from potluck.report import runs, target

MakeExperiment = Callable[..., Experiment]
Potluck = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(small: MakeExperiment, tmp_path: Path) -> str:
    path = tmp_path / "first.toml"
    plain = small("fedavg", "model.name=mlp", "data.public=0.0").model_copy(update={"name": "first"})
    path.write_text(store.to_toml(plain))
    return str(path)


def test_a_method_that_fails_is_named_and_the_others_go_on(potluck: Potluck, file: str, tmp_path: Path) -> None:
    code, out, _ = potluck("compare", file, "--methods", "fedh2l,local,fedavg", "--out", "all")
    assert code == 1
    assert "fedh2l-0 failed: fedh2l needs a shared seed set" in out
    for method in ("local", "fedavg"):
        assert (tmp_path / "all" / f"{method}-0" / "summary.json").is_file()
        assert f"\n {method} " in out
    page = (tmp_path / "all/report.html").read_text()
    assert "What failed" in page
    assert "fedh2l needs a shared seed set" in page
    code, _, _ = potluck("report", "all", "--out", "again.html")
    assert code == 0
    assert "fedh2l needs a shared seed set" in (tmp_path / "again.html").read_text()
    code, _, _ = potluck("compare", file, "--methods", "fedh2l", "--out", "none")
    assert code == 2


def test_a_net_of_ones_own_that_breaks_stops_no_other(potluck: Potluck, file: str, tmp_path: Path) -> None:
    (tmp_path / "breaks_late.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, shape, classes):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Linear(shape[0] * shape[1] * shape[2], classes)\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) > 2: raise KeyError('no such part')\n"
        "        return self.last(x.flatten(1))\n"
        "def net(shape, classes):\n"
        "    return Net(shape, classes)\n"
    )
    text = Path(file).read_text() + '\n[methods.fedprox.model]\nname = "breaks_late:net"\n'
    Path(file).write_text(text.replace("[methods]\n", ""))
    code, out, _ = potluck("compare", file, "--methods", "fedprox,fedavg", "--out", "all")
    assert code == 1
    assert "fedprox-0 failed: KeyError: 'no such part'" in out
    assert (tmp_path / "all/fedavg-0/summary.json").is_file()


def test_seeds_have_a_mean_and_a_spread(potluck: Potluck, file: str) -> None:
    code, out, _ = potluck("compare", file, "--methods", "fedavg", "--seeds", "0,1,2", "--out", "all")
    assert code == 0
    assert " ± " in out
    assert "seeds" in out


def test_a_stopped_comparison_goes_on(small: MakeExperiment, tmp_path: Path) -> None:
    wanted = compare.variants(small("fedavg", "model.name=mlp", "rounds=3"), ["local", "fedavg"], [0])

    class Stops(Silence):
        def round_done(self, line: dict[str, object]) -> None:
            if line["round"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(compare.compare(wanted, tmp_path, lambda number, one: Stops() if number else run.SILENCE))
    assert (tmp_path / "local-0/summary.json").is_file()
    assert not (tmp_path / "fedavg-0/summary.json").exists()
    before = (tmp_path / "local-0/summary.json").stat().st_mtime_ns
    outcomes = list(compare.compare(wanted, tmp_path, lambda number, one: run.SILENCE))
    assert [outcome.reason for outcome in outcomes] == ["", ""]
    assert (tmp_path / "local-0/summary.json").stat().st_mtime_ns == before
    unbroken = run.run(wanted[1][0], tmp_path / "unbroken")
    resumed = json.loads((tmp_path / "fedavg-0/summary.json").read_text())
    assert resumed["state_sha256"] == unbroken.summary["state_sha256"]


@pytest.mark.parametrize(("name", "words"), [("rounds.jsonl", "rounds.jsonl"), ("summary.json", "summary.json")])
def test_a_damaged_run_is_named(potluck: Potluck, file: str, tmp_path: Path, name: str, words: str) -> None:
    potluck("compare", file, "--methods", "local,fedavg", "--out", "all", "--quiet")
    place = tmp_path / "all/local-0" / name
    place.write_text("{nothing\n" + place.read_text())
    code, out, told = potluck("compare", file, "--methods", "local,fedavg", "--out", "all")
    assert code == 1
    assert "Traceback" not in out + told
    assert "local-0 failed" in out
    assert words in out
    code, _, _ = potluck("report", "all", "--out", "page.html")
    assert code == 0
    assert "Left out" in (tmp_path / "page.html").read_text()


def test_empty_and_foreign_folders(potluck: Potluck, file: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, told = potluck("report", "empty")
    assert code == 2
    assert "neither a run folder nor a folder of run folders" in told
    potluck("run", file, "--quiet", "--out", "a")
    potluck("run", file, "--quiet", "--out", "b", "--set", "data.limit=150")
    (tmp_path / "own_metric.py").write_text(
        "def score(logits, labels):\n    return (logits.argmax(1) == labels).double() * 2\n"
    )
    potluck("run", file, "--quiet", "--out", "c", "--set", "evaluate.metric=own_metric:score")
    assert potluck("report", "a", "b", "--out", "data.html")[0] == 0
    page = (tmp_path / "data.html").read_text()
    assert "These runs are not comparable" in page
    assert "data.limit" in page
    assert potluck("report", "a", "c", "--out", "metric.html")[0] == 0
    page = (tmp_path / "metric.html").read_text()
    assert "These runs have no common metric" in page
    assert "Pareto front" not in page


def test_what_it_takes_to_reach_a_target(potluck: Potluck, file: str, tmp_path: Path) -> None:
    words = ("compare", file, "--methods", "fedavg", "--out", "all", "--set", "rounds=4", "--set", "train.lr=0.2")
    code, out, _ = potluck(*words, "--target", "0.99")
    assert code == 0
    assert "bytes to 0.99" in out
    found = runs.read(tmp_path / "all/fedavg-0")
    means = [line.scores.mean for line in found.rounds if line.scores]
    second = sorted(means)[1]
    there = target.reached(found, second)
    assert there is not None
    assert there.round == next(n for n, mean in enumerate(means, start=1) if mean >= second)
    assert there.bytes == sum(line.traffic.total for line in found.rounds[: there.round])
    assert there.simulated_seconds == found.rounds[there.round - 1].simulated_seconds
    assert target.reached(found, 1.1) is None
    (runtime,) = target.sides([found], second)
    assert runtime.bytes_to_target is not None
    assert (runtime.reached, runtime.bytes_to_target.mean, runtime.bytes_to_target.deviation) == (1, there.bytes, None)
    assert target.target_of([found]) == int(90 * means[-1]) / 100
