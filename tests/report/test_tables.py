"""The tables' numbers, and that a user's words cannot become markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from potluck.report import compare, runs, tables

MakeRun = Callable[..., Path]


def cells(markup: str) -> list[list[str]]:
    """The text of the cells of each row."""
    rows = re.findall(r"<tr>(.*?)</tr>", markup, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_table_escapes_and_marks_numbers() -> None:
    made = tables.table(["<a>", "n"], [["<script>", 'x"y']])
    assert cells(made) == [["&lt;a&gt;", "n"], ["&lt;script&gt;", "x&quot;y"]]
    assert '<td class="n">' in made


def test_by_tier_adds_up_its_devices(make_run: MakeRun) -> None:
    run = runs.read(make_run(wrong={(1, 0): ("late", "slow")}))
    assert cells(tables.by_tier(run))[1:] == [
        ["phone", "2", "1 / – Mbit/s", "30.5%", "1,234", "6.00 kB", "12.0 kB", "5 of 6"],
        ["laptop", "1", "1 / – Mbit/s", "32.0%", "1,234", "3.00 kB", "6.00 kB", "3 of 3"],
    ]


def test_headline_of_a_finished_and_of_an_interrupted_run(make_run: MakeRun) -> None:
    done, broken = tables.headline(runs.read(make_run("a"))), tables.headline(runs.read(make_run("b", done=1)))
    assert all(word in done for word in ("31.0%", "30.0%", "27.0 kB", "4.50 s", "1.50 s", "5.00 MB", "1,234"))
    assert all(word in broken for word in ("11.0%", "9.00 kB", "1.50 s", "500 ms", "known at the end"))
    assert "5.00 MB" not in broken


def test_messages_of_an_engine_stand_beside_the_frames(make_run: MakeRun) -> None:
    run = runs.read(make_run())
    assert "as messages" not in tables.headline(run)
    told = replace(run, summary={**run.summary, "engine_bytes": {"total": 31_400}})
    assert "9.00 kB up, 18.0 kB down; 31.4 kB as messages of the engine" in tables.headline(told)


def test_troubles_come_with_rounds_and_reason(make_run: MakeRun) -> None:
    wrong = {(1, 2): ("lost", "<gone>"), (1, 0): ("late", "took 9 s"), (2, 0): ("late", "took 8 s")}
    run = runs.read(make_run(wrong=wrong))
    assert cells(tables.troubles(run))[1:] == [
        ["device 0", "phone", "late", "1–2", "took 8 s", "2"],
        ["device 2", "laptop", "lost", "1", "&lt;gone&gt;", "1"],
    ]
    assert tables.trouble_words(run) == "Of 9 replies, 2 were late and 1 was lost."


def test_a_tier_that_was_never_aggregated_is_a_warning(make_run: MakeRun) -> None:
    run = runs.read(make_run(wrong={(number, 2): ("late", "slow") for number in (1, 2, 3)}))
    (warning,) = tables.warnings(run)
    assert "tier laptop" in warning
    assert "all 3 were" in warning


def test_comparison_has_a_row_for_each_run(make_run: MakeRun) -> None:
    read = [runs.read(make_run(f"r{seed}", seed=seed, method=method)) for seed, method in ((0, "fedavg"), (1, "local"))]
    head, first, second = cells(tables.comparison(read, compare.labels(read)))
    assert head[:3] == ["method", "seed", "rounds"]
    assert first == [
        *("fedavg", "0", "3", "31.0%", "30.0%", "30.5%", "32.0%"),
        *("9.00 kB", "18.0 kB", "27.0 kB", "4.50 s", "1,234", "5.00 MB"),
    ]
    assert second[:2] == ["local", "1"]


def test_over_seeds_gives_mean_and_deviation_of_finished_runs(make_run: MakeRun) -> None:
    read = [runs.read(make_run(f"r{s}", seed=s)) for s in (0, 1)]
    made = tables.over_seeds(compare.groups(read))
    assert made is not None
    assert cells(made)[1] == ["fedavg", "2", "31.0 ± 0.0%", "30.0 ± 0.0%", "27.0 kB", "4.50 s"]
    assert tables.over_seeds(compare.groups(read[:1])) is None


def test_differences_tell_what_forbids_comparing(make_run: MakeRun) -> None:
    plain = runs.read(make_run("a"))
    other = runs.read(make_run("b", changes={"data": {"source": "npz:x"}, "train": {"lr": 0.1}}))
    made, forbidding = tables.differences([plain, other], ["a", "b"])
    assert made is not None
    assert ["train.lr", "0.05", "0.1"] in cells(made)
    assert forbidding == ["data.partition", "data.source"]
    assert tables.differences([plain, runs.read(make_run("c", seed=1, method="local"))], ["a", "c"]) == (None, [])


def test_settings_show_every_leaf(make_run: MakeRun) -> None:
    made = tables.settings(runs.read(make_run(changes={"model": {"name": "<img src=x>"}})))
    assert "partition.alpha" in made
    assert "&lt;img src=x&gt;" in made
    assert "<img" not in made


def test_labels_tell_all_runs_apart(make_run: MakeRun) -> None:
    read = [runs.read(make_run(folder)) for folder in ("a/x", "b/x", "c")] + [runs.read(make_run("d", seed=1))]
    assert compare.labels(read) == [
        "fedavg, seed 0 (x) [1]",
        "fedavg, seed 0 (x) [2]",
        "fedavg, seed 0 (c)",
        "fedavg, seed 1",
    ]


def test_front_is_what_no_other_beats() -> None:
    points = [(10.0, 0.5), (10.0, 0.6), (20.0, 0.6), (30.0, 0.9), (40.0, 0.8)]
    assert compare.front(points) == [1, 3]
    assert compare.front([(1.0, 0.5), (1.0, 0.5)]) == [0, 1]
