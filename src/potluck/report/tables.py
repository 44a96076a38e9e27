"""The tables of a report, as markup in which every word of the user is escaped."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from potluck.report import ledger
from potluck.report.ledger import WRONG, Traffic
from potluck.report.runs import Run
from potluck.report.units import NONE, SHARES, Html, count, duration, esc, number, ranges, score, size, words

MOST_TROUBLES = 200
LONG = 32
"""Letters from which on a cell may break into lines."""
TALL = 15
"""Rows from which on a table scrolls in its box."""
SECTIONS = ("data", "model", "method", "train", "fleet", "wire", "evaluate", "engine")
"""The sections of an experiment file, in the order of its documentation."""


def table(head: Sequence[object], rows: Sequence[Sequence[object]], words: int = 1) -> Html:
    """A table in a box of its own that scrolls sideways. All but the first ``words`` columns are numbers."""
    top = "".join(f'<th scope="col"{_kind(place, words, "")}>{esc(name)}</th>' for place, name in enumerate(head))
    lines = []
    for first, *others in rows:
        cells = (f"<td{_kind(place, words, value)}>{esc(value)}</td>" for place, value in enumerate(others, start=1))
        lines.append(f'<tr><th scope="row">{esc(first)}</th>{"".join(cells)}</tr>')
    tall = " tall" if len(rows) > TALL else ""
    return Html(
        f'<div class="scroll{tall}" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kind(place: int, words: int, value: object) -> str:
    """The class of a cell: a number stands to the right, a long text may break."""
    return ' class="n"' if place >= words else ' class="long"' if len(str(value)) > LONG else ""


def headline(run: Run) -> Html:
    """The numbers a reader looks for first, large."""
    scores, sent = run.scores, run.traffic
    last = run.rounds[-1] if run.rounds else None
    cards: list[tuple[str, str, str]] = []
    if scores is not None:
        at = run.evaluated[-1].number
        tenth = "10th" if run.better == "higher" else "90th"
        cards += [
            (f"mean {words(run.metric)}", score(scores.mean, run.metric), f"over devices, after round {at}"),
            ("worst device", score(scores.worst, run.metric), f"{tenth} percentile {score(scores.p10, run.metric)}"),
        ]
    else:
        cards.append((words(run.metric), NONE, "not evaluated yet"))
    wall = run.summary.get("wall_seconds", last.wall_seconds if last else None)
    cards += [
        ("bytes sent", size(sent.total), f"{size(sent.up)} up, {size(sent.down)} down{_as_messages(run)}"),
        ("simulated time", duration(last.simulated_seconds if last else None), "what the fleet would have taken"),
        ("wall time", duration(wall), "on the machine that ran it"),
        (
            "peak memory",
            size(run.summary.get("peak_rss_bytes")),
            "all processes of the run" if run.summary else "known at the end",
        ),
    ]
    aggregated, missed = replies(run)
    cards += [
        ("parameters", parameters(run), "of what a device deploys" if run.summary else "known at the end"),
        ("replies aggregated", count(aggregated), f"of {count(aggregated + missed)}"),
    ]
    made = [f"<div><dt>{esc(a)}</dt><dd><b>{esc(b)}</b><span>{esc(c)}</span></dd></div>" for a, b, c in cards]
    return Html(f'<dl class="cards">{"".join(made)}</dl>')


def _as_messages(run: Run) -> str:
    """What the engine's own messages around those frames came to, where it has some."""
    found = run.summary.get("engine_bytes")
    return f"; {size(found['total'])} as messages of the engine" if found else ""


def replies(run: Run, tier: str | None = None) -> tuple[int, int]:
    """How many replies were aggregated and how many were not, of a tier or of all."""
    mine = {device for found in run.tiers for device in found.devices if tier in (None, found.name)}
    aggregated = sum(many for device, many in run.ledger.aggregated.items() if device in mine)
    return aggregated, sum(len(trouble.rounds) for trouble in run.ledger.troubles if trouble.device in mine)


def warnings(run: Run) -> list[str]:
    """What a reader must know before the numbers: a tier of which nothing was ever aggregated."""
    silent = [
        (tier.name, missed)
        for tier in run.tiers
        for aggregated, missed in [replies(run, tier.name)]
        if missed and not aggregated
    ]
    return [
        f"No reply of tier {name} was ever aggregated: all {missed:,} were late, lost or rejected, and what its "
        "devices hold did not count."
        for name, missed in silent
    ]


def by_tier(run: Run) -> Html:
    """A row for each tier: what it has, what it reached, what it cost."""
    scores, parameters = run.scores, run.summary.get("parameters", {})
    head = [
        "tier",
        "devices",
        "up / down link",
        words(run.metric),
        "parameters",
        "bytes up",
        "bytes down",
        "aggregated",
    ]
    rows: list[Sequence[object]] = []
    for tier in run.tiers:
        sent = ledger.add(run.ledger.traffic[d] for d in tier.devices if d in run.ledger.traffic)
        aggregated, missed = replies(run, tier.name)
        up, down = (number(tier.settings.get(f"{side}link_mbps", NONE)) for side in ("up", "down"))
        rows.append(
            [
                tier.name,
                count(len(tier.devices)),
                f"{up} / {down} Mbit/s",
                score(scores.tiers.get(tier.name) if scores else None, run.metric),
                count(parameters.get(tier.name)),
                size(sent.up),
                size(sent.down),
                f"{count(aggregated)} of {count(aggregated + missed)}",
            ]
        )
    return table(head, rows)


def metrics(run: Run) -> Html:
    """All metrics of the last evaluated round, and the one that runs are judged by for each class, label or target."""
    last = next(iter(run.evaluated[-1:]), None)
    if last is None or not last.metrics:
        return Html("")
    named = [[words(name), score(value, name)] for name, value in last.metrics.items()]
    made = table(["metric", "mean over devices"], named)
    if not last.breakdown:
        return made
    parts = [[name, score(value, PART_METRIC.get(run.metric, run.metric))] for name, value in last.breakdown.items()]
    return Html(made + table(["of", PART_TITLE.get(run.metric, words(run.metric))], parts))


PART_METRIC = {"accuracy": "accuracy", "balanced_accuracy": "accuracy", "macro_f1": "accuracy", "top5": "accuracy"}
PART_TITLE = dict.fromkeys(PART_METRIC, "recall")
"""What a task with classes says of each of them."""


def troubles(run: Run) -> Html:
    """Who was late, lost or rejected, how often, when, and why; the most troubled first."""
    found = sorted(run.ledger.troubles, key=lambda t: (-len(t.rounds), t.device, t.status))
    rows = [
        [f"device {t.device}", t.tier, t.status, ranges(t.rounds), t.reason or NONE, count(len(t.rounds))]
        for t in found[:MOST_TROUBLES]
    ]
    made = table(["device", "tier", "status", "rounds", "reason (of the last time)", "times"], rows, words=5)
    if len(found) > MOST_TROUBLES:
        made = Html(made + f"<p>The {MOST_TROUBLES} most frequent of {len(found):,}; all stand in ledger.jsonl.</p>")
    return made


def trouble_words(run: Run) -> str:
    """How many replies were late, lost or rejected, in words."""
    counts = {status: sum(len(t.rounds) for t in run.ledger.troubles if t.status == status) for status in WRONG}
    asked = sum(counts.values()) + sum(run.ledger.aggregated.values())
    parts = [f"{many:,} {'was' if many == 1 else 'were'} {status}" for status, many in counts.items() if many]
    return f"Of {asked:,} replies, {' and '.join(parts)}." if parts else f"All {asked:,} replies were aggregated."


def constant_notes(run: Run, found: Mapping[str, Mapping[str, float]]) -> Html:
    """Notes that were the same in every round."""
    tiers = [tier.name for tier in run.tiers]
    rows = [
        [name, *(number(values[t]) if t in values else NONE for t in tiers)] for name, values in sorted(found.items())
    ]
    return table(["the same in every round", *tiers], rows)


def settings(run: Run) -> Html:
    """The resolved experiment: a small table a section, and the tiers of the fleet as one."""
    top = {key: value for key, value in run.experiment.items() if not isinstance(value, dict)}
    boxes = [_section("run", top)]
    for name in [*SECTIONS, *(key for key in run.experiment if key not in SECTIONS)]:
        found = run.experiment.get(name)
        if isinstance(found, dict) and set(found) - {"tier"}:
            boxes.append(
                _section(name, {key: value for key, value in found.items() if (name, key) != ("fleet", "tier")})
            )
    keys = list(dict.fromkeys(key for tier in run.tiers for key in tier.settings))
    tiers = table(keys, [[value_text(tier.settings.get(key, NONE)) for key in keys] for tier in run.tiers])
    return Html(f'<div class="sections">{"".join(boxes)}</div><h4>fleet.tier</h4>{tiers}')


def _section(name: str, found: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><th scope='row'>{esc(key)}</th><td>{esc(value_text(value))}</td></tr>"
        for key, value in flat(found).items()
    ]
    return f'<section><h4>{esc(name)}</h4><div class="scroll"><table>{"".join(rows)}</table></div></section>'


def value_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value_text(inner) for inner in value) or "none"
    return repr(value) if isinstance(value, float) else str(value) if value != "" else "none"


def flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; an array of tables counts its tables by name or number."""
    made: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            made |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
            for place, inner in enumerate(value):
                made |= flat(inner, f"{prefix}{key}.{inner.get('name', place)}.")
        else:
            made[f"{prefix}{key}"] = value
    return made


def comparison(runs: Sequence[Run], labels: Sequence[str]) -> Html:
    """A row for each run."""
    tiers = list(dict.fromkeys(tier.name for run in runs for tier in run.tiers))
    # Where method and seed do not tell runs apart, their names in the figures stand in front.
    told = [(run.method, f"{run.method}, seed {run.seed}") for run in runs]
    more = ["run"] if any(label not in names for names, label in zip(told, labels, strict=True)) else []
    head = [*more, "method", "seed", "rounds", "mean", "worst", *tiers]
    head += ["bytes up", "bytes down", "in all", "simulated", "parameters", "peak memory"]
    rows = [[*([label] if more else []), *_comparison_row(run, tiers)] for run, label in zip(runs, labels, strict=True)]
    return table(head, rows, words=1 + len(more))


def _comparison_row(run: Run, tiers: Sequence[str]) -> list[object]:
    scores, sent = run.scores, run.traffic
    return [
        run.method,
        run.seed,
        str(run.done) if run.finished else f"{run.done} of {run.planned}",
        score(scores.mean if scores else None, run.metric),
        score(scores.worst if scores else None, run.metric),
        *(score(scores.tiers.get(tier) if scores else None, run.metric) for tier in tiers),
        size(sent.up),
        size(sent.down),
        size(sent.total),
        duration(run.rounds[-1].simulated_seconds if run.rounds else None),
        parameters(run),
        size(run.summary.get("peak_rss_bytes")),
    ]


def parameters(run: Run) -> str:
    """The parameters of the tiers' models: one number, or the least and the most."""
    found = sorted(run.summary.get("parameters", {}).values())
    if not found:
        return NONE
    return count(found[0]) if found[0] == found[-1] else f"{count(found[0])}–{count(found[-1])}"


def over_seeds(groups: Mapping[str, Sequence[Run]]) -> Html | None:
    """A row for each method with several seeds: mean and sample deviation over finished runs."""
    rows: list[Sequence[object]] = []
    for name, runs in groups.items():
        done = [run for run in runs if run.finished and run.scores is not None]
        if len(done) < 2:
            continue
        means = [run.scores.mean for run in done if run.scores]
        worsts = [run.scores.worst for run in done if run.scores]
        sent: list[Traffic] = [run.traffic for run in done]
        metric = done[0].metric
        rows.append(
            [
                name,
                len(done),
                _spread(means, metric),
                _spread(worsts, metric),
                size(statistics.fmean(part.total for part in sent)),
                duration(statistics.fmean(run.rounds[-1].simulated_seconds for run in done)),
            ]
        )
    head = ["method", "seeds", "mean ± deviation", "worst ± deviation", "bytes in all", "simulated"]
    return table(head, rows) if rows else None


def _spread(values: Sequence[float], metric: str) -> str:
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if metric in SHARES:
        return f"{100 * mean:.1f} ± {100 * deviation:.1f}%"
    return f"{mean:.4g} ± {deviation:.2g}"


def differences(runs: Sequence[Run], labels: Sequence[str]) -> tuple[Html | None, list[str]]:
    """A table of the settings in which runs differ beyond name, seed and method; and where they forbid comparing."""
    found = [
        flat({k: v for k, v in run.experiment.items() if k not in ("name", "seed", "method", "methods")})
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(key for one in found for key in one)
        if len({repr(one.get(key)) for one in found}) > 1
    ]
    if not keys:
        return None, []
    rows = [[key, *(value_text(one.get(key, NONE)) for one in found)] for key in sorted(keys)]
    found_in = (".".join(key.split(".")[:2]) for key in keys)
    forbidding = sorted({key for key in found_in if key.startswith(("data.", "fleet.")) or key == "evaluate.metric"})
    return table(["setting", *labels], rows, words=1 + len(labels)), forbidding
