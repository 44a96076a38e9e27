"""The page: one HTML file with everything in it, that asks nobody for anything."""

from __future__ import annotations

import base64
import gzip
import json
import math
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from potluck.core.errors import MissingExtraError, RunFolderError
from potluck.report import compare, costs, peers, plots, ran_with, runs, tables
from potluck.report.runs import Run
from potluck.report.shapes import Entry, Panel
from potluck.report.units import Html, esc, plain, plural

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The browser itself sees to it that the page asks nobody for anything."""


def write_report(folders: Sequence[Path], out: Path, comparison: Path | None = None) -> Path:
    """Writes the report of run folders, or of folders that hold run folders, and returns where it stands.

    Several runs are set side by side; a damaged one among them is a note on the page. What failed stands in the
    ``comparison.json`` of the folders, or of the folder ``comparison``. Raises RunFolderError where
    there is nothing to report, or where the page cannot be written; MissingExtraError without plotly.
    """
    script = _plotly()
    read, notes = _read(runs.find([Path(folder) for folder in folders]))
    page = Page()
    title = _title(read)
    failed = ran_with.failures(runs.failed([comparison] if comparison else [Path(folder) for folder in folders]))
    body = _single(page, read[0]) if len(read) == 1 else _several(page, read)
    if failed:
        body = Html(_section("What failed", [failed]) + body)
    noted = "".join(f'<p class="note">{esc(note)}</p>' for note in notes)
    text = _document(title, Html(f"{_header(read, title)}{noted}{body}"), page, script)
    return _write(Path(out), text)


def _read(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    found: list[Run] = []
    notes: list[str] = []
    for folder in folders:
        try:
            found.append(runs.read(folder))
        except RunFolderError as error:
            if len(folders) == 1:
                raise
            notes.append(f"Left out: {error}")
    if not found:
        raise RunFolderError(notes[0].removeprefix("Left out: "))
    return peers.whole(found), notes


class Page:
    """Collects figures while the markup around them is made."""

    __slots__ = ("figures",)

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def panel(self, panel: Panel | None) -> Html:
        """The markup of a panel; nothing where there is none."""
        if panel is None:
            return Html("")
        figures = []
        for figure in panel.figures:
            place = len(self.figures)
            self.figures.append({"data": figure.data, "layout": {**figure.layout, "height": figure.height}})
            heading = f"<figcaption>{esc(figure.title)}</figcaption>" if figure.title else ""
            label = esc(f"{panel.title} {figure.title}".strip())
            figures.append(
                f'<figure>{heading}<div class="plot" data-figure="{place}" role="img" aria-label="{label}" '
                f'style="min-height:{figure.height}px"></div></figure>'
            )
        text = f"<p>{esc(panel.text)}</p>" if panel.text else ""
        return Html(
            f'<section class="panel"><h3>{esc(panel.title)}</h3>{text}{_legend(panel.legend)}'
            f'<div class="grid g{min(panel.columns, len(figures))}">{"".join(figures)}</div></section>'
        )


def _legend(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    items = "".join(
        f'<li><button type="button" aria-pressed="true" data-name="{esc(plain(entry.name))}">'
        f'<i class="{entry.mark} {entry.dash}" style="color:{entry.colour}"></i>{esc(entry.name)}</button></li>'
        for entry in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _title(read: Sequence[Run]) -> str:
    return read[0].name if len(read) == 1 else f"{len(read)} runs compared"


def _header(read: Sequence[Run], title: str) -> Html:
    if len(read) == 1:
        about = _facts(read[0])
    else:
        methods = ", ".join(dict.fromkeys(run.method for run in read))
        seeds = list(dict.fromkeys(run.seed for run in read))
        seed = f" · seed <b>{esc(seeds[0])}</b>" if len(seeds) == 1 else ""
        about = Html(f'<p class="facts">{esc(methods)}{seed}</p>')
    return Html(f'<header><p class="brand">Potluck report</p><h1>{esc(title)}</h1>{about}</header>')


def _facts(run: Run) -> Html:
    devices = sum(len(tier.devices) for tier in run.tiers)
    facts = [
        f"method <b>{esc(run.method)}</b>",
        f"seed <b>{esc(run.seed)}</b>",
        f"<b>{esc(plural(run.done, 'round'))}</b>" if run.finished else f"round <b>{run.done} of {run.planned}</b>",
        f"<b>{esc(plural(devices, 'device'))}</b> in {esc(plural(len(run.tiers), 'tier'))}",
    ]
    resume = f"<code>potluck resume {esc(shlex.quote(str(run.path)))}</code>"
    state = (
        '<p class="state">Finished</p>'
        if run.finished
        else f'<p class="note"><b>Not finished:</b> interrupted after round {run.done} of {run.planned}, or still '
        f"going. To go on with it: {resume}</p>"
    )
    warned = "".join(f'<p class="note">{esc(warning)}</p>' for warning in tables.warnings(run))
    return Html(f'<p class="facts">{" · ".join(facts)}</p>{state}{warned}')


def _single(page: Page, run: Run) -> Html:
    return Html(
        _section("In numbers", [tables.headline(run), tables.by_tier(run), peers.by_peer(run)]) + _sections(page, run)
    )


def _sections(page: Page, run: Run) -> Html:
    """What every run's report says below its numbers."""
    noted, constant = costs.notes(run)
    table = tables.constant_notes(run, constant) if constant else ""
    learned = [plots.metric_lines(run), plots.final(run), plots.on_own_data(run), plots.domains(run)]
    parts = [
        _section("What it learned", [*(page.panel(panel) for panel in learned), tables.metrics(run)]),
        _section("What it cost", [page.panel(costs.bytes_panels(run)), page.panel(costs.wall(run))]),
        _section("What devices noted", [page.panel(noted), table]),
        _section("Who made it", _who(page, run)),
        _section("How to run it again", [_again(run)]),
        _section("Settings", [tables.settings(run)]),
    ]
    return Html("".join(parts))


def _section(title: str, parts: Sequence[str]) -> str:
    inner = "".join(parts)
    return f"<section><h2>{esc(title)}</h2>{inner}</section>" if inner else ""


def _who(page: Page, run: Run) -> list[str]:
    if not run.rounds:
        return []
    words = f"<p>{esc(tables.trouble_words(run))}</p>"
    return [words, *([page.panel(costs.status_map(run)), tables.troubles(run)] if run.ledger.troubles else [])]


def _again(run: Run) -> str:
    data = base64.b64encode(run.toml.encode()).decode()
    expected = run.summary.get("state_sha256")
    digest = (
        f"<p>On the same machine with the same versions, its <code>summary.json</code> then says</p>"
        f'<pre class="wrap">state_sha256 = {esc(expected)}</pre>'
        if expected
        else "<p>Each peer's own <code>summary.json</code> holds the digest of its part.</p>"
        if run.finished
        else "<p>The run is not finished, so there is no <code>state_sha256</code> to expect yet.</p>"
    )
    return (
        f'<p>Save the resolved experiment, in which every default is written out, as <a download="experiment.toml" '
        f'href="data:text/plain;base64,{data}">experiment.toml</a>, then:</p>'
        f"<pre>potluck run experiment.toml</pre>{digest}"
        f"<details><summary>experiment.toml</summary><pre>{esc(run.toml)}</pre></details>"
    )


def _several(page: Page, read: Sequence[Run]) -> Html:
    names = compare.labels(read)
    entries = compare.legend(read, names)
    differ, forbidding = tables.differences(read, names)
    metrics = dict.fromkeys(run.metric for run in read)
    common = len(metrics) == 1
    parts = [_warning(forbidding) if common else _no_metric(metrics)]
    seeds = tables.over_seeds(compare.groups(read)) if common else ""
    numbers = [tables.comparison(read, names), "<h3>Over seeds</h3>" + seeds if seeds else ""]
    numbers.append((ran_with.to_target(read, names) if common else None) or "")
    parts.append(_section("Side by side", numbers))
    trade = [compare.pareto(read, entries) if common else None, compare.bytes_bars(read, names)]
    parts.append(_section("What it costs", [page.panel(panel) for panel in trade]))
    lines = [
        compare.curves(read, entries, "mean"),
        compare.curves(read, entries, "worst"),
        compare.tiers(read, entries),
    ]
    parts.append(_section("What they learned", [page.panel(panel) for panel in lines] if common else []))
    parts.append(_section("What each method ran with", [ran_with.method_settings(compare.groups(read))]))
    if differ:
        text = "<p>Beyond name, seed and method, the experiments differ in these.</p>"
        parts.append(_section("Where the settings differ", [text, differ]))
    parts.append("<h2>Each run</h2><p>With its ledger, every setting, and how to run it again to the same digest.</p>")
    for run, name in zip(read, names, strict=True):
        inner = f"{_facts(run)}{tables.headline(run)}{tables.by_tier(run)}{_sections(page, run)}"
        parts.append(f'<details class="run"><summary>{esc(name)}</summary>{inner}</details>')
    return Html("".join(parts))


def _no_metric(metrics: Sequence[str] | dict[str, None]) -> str:
    return (
        '<p class="note"><b>These runs have no common metric:</b> '
        f"{esc(', '.join(metrics))}. Their scores are not drawn side by side.</p>"
    )


def _warning(forbidding: Sequence[str]) -> str:
    if not forbidding:
        return ""
    listed = ", ".join(forbidding[:8]) + (", …" if len(forbidding) > 8 else "")
    return (
        '<p class="note"><b>These runs are not comparable.</b> They differ in their data or their fleet: '
        f"{esc(listed)}. A better figure need not mean a better method.</p>"
    )


def _document(title: str, body: Html, page: Page, plotly: str) -> str:
    files = resources.files("potluck.report")
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    figures = json.dumps(_finite(page.figures), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{esc(title)} · Potluck</title><style>{style}</style></head>\n<body><main>{body}"
        '<noscript><p class="note">The figures need JavaScript; the tables do without.</p></noscript></main>\n'
        f'<script type="application/json" id="figures">{figures}</script>\n'
        f'<script type="text/plain" id="plotly">{_packed(plotly)}</script>\n<script>{script}</script>\n</body></html>\n'
    )


def _finite(value: Any) -> Any:
    """The value with None for numbers that are not finite: JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415  an extra, loaded when first used
    except ImportError:
        raise MissingExtraError("a report", "lab") from None
    found: str = get_plotlyjs()
    return found


def _packed(script: str) -> str:
    """The script as the page unpacks it: plotly whole is two thirds smaller so."""
    return base64.b64encode(gzip.compress(script.encode(), 6, mtime=0)).decode()


def _write(out: Path, text: str) -> Path:
    """Writes beside, then renames: a reader finds the old page or the new one."""
    fresh = out.with_name(out.name + ".new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(out)
    except OSError as error:
        raise RunFolderError(f"{out}: the report cannot be written ({error.strerror or error})") from None
    return out
