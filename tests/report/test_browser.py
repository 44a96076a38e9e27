"""The page of a comparison in a browser: from a file, asking nobody, drawn, with words under the mouse."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potluck.report import write_report

spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parent / "chromium.py")
assert spec is not None
assert spec.loader is not None
chromium = importlib.util.module_from_spec(spec)
sys.modules["chromium"] = chromium
spec.loader.exec_module(chromium)

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
MakeRun = Callable[..., Path]

PLOTS = "[...document.querySelectorAll('.plot')].filter(p => p.checkVisibility())"
WIDE = "document.documentElement.scrollWidth <= window.innerWidth"
"""No sideways scrolling of the page: what is wide scrolls in its own box."""
POINT = """
(() => {
  const plot = document.querySelector('main > section .plot:has(.scatterlayer .point)');
  plot.scrollIntoView({block: 'center', behavior: 'instant'});
  const point = [...plot.querySelectorAll('.scatterlayer .point')].at(-1).getBoundingClientRect();
  return [point.x + point.width / 2, point.y + point.height / 2];
})()
"""
SAID = "[...document.querySelectorAll('.hoverlayer text')].map(t => t.textContent).join(' ')"


@pytest.fixture
def page(make_run: MakeRun, tmp_path: Path) -> Path:
    """A comparison of three methods and two seeds."""
    runs = [
        make_run("fedavg-0"),
        make_run("fedavg-1", seed=1),
        make_run("local-0", method="local", personal=True, domains=True),
        make_run("fedhm-0", method="fedhm", done=2, wrong={(1, 0): ("late", "slow")}),
    ]
    return write_report(runs, tmp_path / "report.html")


def see_all(browser: Any) -> int:
    """Scrolls to every plot and waits until it is drawn, which is when it is about to be seen; how many there are."""
    many = int(browser.value(f"{PLOTS}.length"))
    for place in range(many):
        browser.value(f"{PLOTS}[{place}].scrollIntoView({{block: 'center', behavior: 'instant'}})")
        browser.until(lambda place=place: browser.value(f"!!{PLOTS}[{place}].querySelector('.main-svg')"))
    return many


@pytest.mark.parametrize("width", [1440, 390])
def test_a_comparison_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    with chromium.Chromium(tmp_path / "profile") as browser:
        browser.open(page, width)
        assert see_all(browser) >= 3
        assert browser.value(WIDE)
        x, y = browser.value(POINT)
        browser.point_at(x, y)
        browser.until(lambda: browser.value(SAID))
        assert "%" in browser.value(SAID)
        assert browser.value("document.querySelectorAll('details.run').length") == 4
        browser.value("document.querySelectorAll('details.run').forEach(d => d.open = true)")
        assert see_all(browser) >= 12
        assert browser.requests() == [page.resolve().as_uri()]
        assert browser.complaints() == []
