"""Rewrites the made part of each page in docs/methods: `python docs/method_pages.py`. A test says when it is due.

What `potluck methods NAME` prints stands above the mark; what follows the mark is written by hand.
"""

from pathlib import Path

from potluck.experiment.manual import page
from potluck.methods import METHODS

FOLDER = Path(__file__).parent / "methods"
MARK = "<!-- Above: made by docs/method_pages.py from the method's own file. Below: by hand. -->"


def due(name: str) -> str:
    """The page of a method as it should be."""
    place = FOLDER / f"{name}.md"
    held = place.read_text(encoding="utf-8") if place.is_file() else ""
    return f"{page(name)}\n{MARK}{held.partition(MARK)[2]}"


if __name__ == "__main__":
    for name in METHODS:
        (FOLDER / f"{name}.md").write_text(due(name), encoding="utf-8")
