"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

NONE = "–"
"""What stands where there is no number."""


class Html(str):
    """Text that is markup already; any other text is escaped before it meets a page."""

    __slots__ = ()


def esc(value: object) -> Html:
    """The value as markup: escaped, unless it is ``Html``."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def plain(value: object) -> str:
    """The value for plotly, which reads tags in names and texts: with none of them left."""
    return str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def size(count: float | None) -> str:
    """Bytes with a decimal unit and three digits: 64.4 MB."""
    if count is None or not math.isfinite(count):
        return NONE
    if abs(count) < 1000:
        return f"{count:.0f} B" if float(count).is_integer() else f"{count:.1f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.5 or unit == "TB":
            break
    return f"{_three(count)} {unit}"


def duration(seconds: float | None) -> str:
    """Seconds in a unit that suits: 120 ms, 5.51 s, 3 min 12 s, 2 h 05 min, 3 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 1:
        return f"{_three(seconds * 1000)} ms" if seconds else "0 s"
    if seconds < 99.95:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


SHARES = ("accuracy", "balanced_accuracy", "top5", "token_accuracy", "macro_f1", "micro_f1", "exact_match")
"""Metrics that are read in percent."""


def score(value: float | None, metric: str = "accuracy") -> str:
    """A share in percent; any other metric as a number."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{100 * value:.1f}%" if metric in SHARES else f"{value:.4g}"


def words(metric: str) -> str:
    """The name of a metric as a person reads it: ``token accuracy``, ``RMSE``."""
    return {"rmse": "RMSE", "mae": "MAE", "r2": "R2", "auroc": "AUROC"}.get(metric, metric.replace("_", " "))


def title(metric: str) -> str:
    """The same at the beginning of a line."""
    told = words(metric)
    return told[:1].upper() + told[1:]


def number(value: object) -> str:
    """A number with at most four digits after what matters; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def ranges(numbers: Iterable[int], most: int = 12) -> str:
    """Whole numbers in short: 1-3, 5; with an ellipsis where there are more than ``most`` pieces."""
    pieces: list[list[int]] = []
    for value in sorted(set(numbers)):
        if pieces and value == pieces[-1][1] + 1:
            pieces[-1][1] = value
        else:
            pieces.append([value, value])
    shown = [str(low) if low == high else f"{low}–{high}" for low, high in pieces[:most]]
    return ", ".join(shown) + (", …" if len(pieces) > most else "")


def plural(many: int, word: str) -> str:
    """A count with its noun: 1 round, 20 rounds."""
    return f"{many:,} {word}" if many == 1 else f"{many:,} {word}s"


def _three(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"
