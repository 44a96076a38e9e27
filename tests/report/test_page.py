"""The page: whole, self-contained, valid, and of a size that a browser bears."""

from __future__ import annotations

import base64
import builtins
import gzip
import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from potluck.core.errors import MissingExtraError, RunFolderError
from potluck.report import compare, shapes, write_report

MakeRun = Callable[..., Path]
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Collects what a page would load, its text outside scripts, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def report(paths: list[Path], out: Path) -> tuple[str, Reader, list[dict[str, Any]]]:
    """The page without plotly's own script, read, and its figures."""
    page = re.sub(r'(?<=id="plotly">)[^<]*', "", write_report(paths, out).read_text(encoding="utf-8"))
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return page, reader, json.loads(found.group(1))


def test_a_page_loads_nothing_and_says_the_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    page, reader, figures = report([make_run(personal=True, domains=True)], tmp_path / "sub" / "report.html")
    assert all(load.startswith("data:") for load in reader.loads)
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    for words in ("digits", "Finished", "31.0%", "27.0 kB", "potluck run experiment.toml", "ab" * 32):
        assert words in reader.text
    assert len(figures) == page.count('class="plot"')
    assert len(page) < 100_000


def test_figures_are_valid_plotly_in_the_colours_of_the_style(make_run: MakeRun, tmp_path: Path) -> None:
    wrong = {(1, 0): ("late", "slow"), (2, 1): ("rejected", "wrong")}
    one = make_run("one", personal=True, domains=True, wrong=wrong)
    page, _, figures = report([one, make_run("two", seed=1), make_run("three", method="local")], tmp_path / "r.html")
    defined = set(re.findall(r"(--[a-z0-9-]+):", page))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", json.dumps(figures)))
    assert used <= defined
    for figure in figures:
        go.Figure(json.loads(re.sub(r"var\(--[a-z0-9-]+\)", "#123456", json.dumps(figure))))


def test_words_of_the_user_stay_words(make_run: MakeRun, tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    wrong = {(1, 0): ("lost", bad)}
    tiers = ((bad, 2), ("<img src=http://x>", 1))
    path = make_run(
        "a", name=bad, method=bad, tiers=tiers, wrong=wrong, personal=True, changes={"model": {"name": bad}}
    )
    for paths in ([path], [path, make_run("b", name=bad, tiers=tiers)]):
        page, reader, figures = report(paths, tmp_path / "r.html")
        assert reader.tags.count("script") == 3
        assert "img" not in reader.tags
        assert bad in reader.text
        assert "alert(1)" in page
        drawn = [trace.get(key) for figure in figures for trace in figure["data"] for key in ("name", "text", "x", "y")]
        assert not re.search(r"<(script|img)", json.dumps(drawn))


def test_an_interrupted_run_says_how_to_go_on(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("my run", done=2)
    _, reader, _ = report([path], tmp_path / "r.html")
    assert "interrupted after round 2 of 3" in reader.text
    assert f"potluck resume '{path}'" in reader.text
    assert "no state_sha256 to expect yet" in reader.text


def test_a_run_without_any_round_has_a_page(make_run: MakeRun, tmp_path: Path) -> None:
    _, reader, figures = report([make_run(done=0)], tmp_path / "r.html")
    assert "not evaluated yet" in reader.text
    assert figures == []


def test_numbers_that_are_not_finite_do_not_break_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run()
    log = path / "rounds.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["accuracy"]["mean"] = float("nan")
    lines[-1]["notes"]["phone"]["loss"] = float("inf")
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, _, figures = report([path], tmp_path / "r.html")
    assert "NaN" not in json.dumps(figures)
    assert "Infinity" not in json.dumps(figures)


def test_several_runs_stand_side_by_side(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("all/a"), make_run("all/b", seed=1), make_run("all/c", method="local", done=1)]
    _, reader, _ = report([tmp_path / "all"], tmp_path / "r.html")
    for words in ("3 runs compared", "fedavg, seed 1", "local, seed 0", "1 of 3", "Over seeds", "Pareto front"):
        assert words in reader.text
    assert "not comparable" not in reader.text
    assert len(paths) == reader.tags.count("details") // 2


def test_runs_of_other_data_or_fleet_are_not_comparable(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("a"), make_run("b", tiers=(("phone", 5),))]
    _, reader, _ = report(paths, tmp_path / "r.html")
    assert "These runs are not comparable." in reader.text
    assert "fleet.tier" in reader.text


def test_one_seed_is_told_once_and_rounds_are_whole(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("all/a"), make_run("all/b", method="local"), make_run("all/c", method="fedhm")]
    page, reader, figures = report(paths, tmp_path / "r.html")
    assert "fedavg, local, fedhm · seed 0" in reader.text
    assert "local, seed 0" not in reader.text
    head = re.search(r"<th\b[^>]*>([^<]*)", page)
    assert head
    assert head[1] == "method", "names that method and seed tell need no column of their own"
    axes = [f["layout"]["xaxis"] for f in figures if f["layout"]["xaxis"]["title"]["text"] == "round"]
    assert axes
    assert all(axis["dtick"] == int(axis["dtick"]) and axis["tickformat"] == "d" for axis in axes)
    assert [shapes.round_axis(last)["dtick"] for last in (1, 8, 9, 20, 100, 1000)] == [1, 1, 2, 5, 20, 200]


def test_the_script_is_packed(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run()], tmp_path / "r.html").read_text(encoding="utf-8")
    packed = re.search(r'id="plotly">([^<]*)', page)
    assert packed
    assert gzip.decompress(base64.b64decode(packed[1])).decode() == get_plotlyjs()
    assert len(page) < 0.45 * len(get_plotlyjs())


def test_names_of_points_meet_neither_names_nor_points() -> None:
    points = [(1e6, 0.60), (1.2e6, 0.61), (1.1e6, 0.62), (5e6, 0.61), (9e6, 0.9), (9.1e6, 0.9), (2e4, 0.1)]
    names = ["fedavg", "fedode", "feddeq, seed 0", "fedhm", "feddlr", "fedh2l", "local"]
    sides = compare._named(points, names, compare.front(points), log=True)
    assert {4, 6} <= sides.keys()
    assert len(sides) > 4
    lows, highs = (math.log(2e4), 0.1), (math.log(9.1e6), 0.9)
    at = [
        [compare.DRAWN[i] * (value[i] - lows[i]) / (highs[i] - lows[i]) for i in (0, 1)]
        for value in ((math.log(x), y) for x, y in points)
    ]
    boxes = {
        i: compare._beside(at[i][0], at[i][1], runtime, compare.LETTER * len(names[i])) for i, runtime in sides.items()
    }
    for place, (left, right, low, high) in boxes.items():
        for other, (x, y) in enumerate(at):
            assert other == place or not (left < x < right and low < y < high)
        for other, box in boxes.items():
            assert other == place or box[0] >= right or box[1] <= left or box[2] >= high or box[3] <= low


def test_a_damaged_run_among_several_is_a_note(make_run: MakeRun, tmp_path: Path) -> None:
    paths = [make_run("a"), make_run("b"), make_run("c")]
    (paths[1] / "rounds.jsonl").write_text("?\n")
    _, reader, _ = report(paths, tmp_path / "r.html")
    assert "2 runs compared" in reader.text
    assert f"Left out: {paths[1]}/rounds.jsonl, line 1: damaged, not JSON" in reader.text
    with pytest.raises(RunFolderError, match="line 1"):
        write_report([paths[1]], tmp_path / "r.html")


def test_a_page_is_the_same_each_time(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run()
    first = write_report([path], tmp_path / "a.html").read_bytes()
    assert first == write_report([path], tmp_path / "b.html").read_bytes()


def test_many_devices_and_rounds_are_summed_up(make_run: MakeRun, tmp_path: Path) -> None:
    wrong = {(number, number % 300): ("late", "slow") for number in range(1, 21)}
    tiers = (("phone", 200), ("laptop", 100))
    page, reader, figures = report([make_run(rounds=20, tiers=tiers, personal=True, wrong=wrong)], tmp_path / "r.html")
    assert "How many of the 300 devices" in reader.text
    assert "The share of a tier's devices" in reader.text
    assert len(page) < 300_000
    assert max(len(trace["x"]) for figure in figures for trace in figure["data"]) <= 500


def test_thousands_of_rounds_are_thinned_out(make_run: MakeRun, tmp_path: Path) -> None:
    page, _, figures = report([make_run(rounds=1500, wrong={(7, 0): ("late", "slow")})], tmp_path / "r.html")
    assert len(page) < 500_000
    assert max(len(trace["x"]) for figure in figures for trace in figure["data"]) <= 501


def test_without_plotly_the_error_says_what_to_install(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = make_run(), builtins.__import__

    def no_plotly(name: str, *rest: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_plotly)
    with pytest.raises(MissingExtraError, match=r"potluck\[lab\]"):
        write_report([path], tmp_path / "r.html")


def test_a_place_that_cannot_be_written_is_one_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run()
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_report([path], path / "experiment.toml" / "r.html")


def test_reading_needs_neither_torch_nor_the_rest_of_potluck(make_run: MakeRun, tmp_path: Path) -> None:
    import subprocess  # noqa: PLC0415  a process of its own, since this one may hold torch already

    code = (
        "import sys; from pathlib import Path; from potluck.report import write_report; "
        "write_report([Path(sys.argv[1])], Path(sys.argv[2])); "
        "print([m for m in sys.modules if m in ('torch', 'pydantic') or m.startswith(('potluck.exp', 'potluck.eng'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_run()), str(tmp_path / "r.html")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
