"""Runs contestants as processes of their own, watches their memory, and keeps every result in a file at once.

A result that stands in the file is not measured again, so a benchmark that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT_S = 900.0
TICK_S = 0.1


@dataclass(frozen=True)
class Results:
    """The file of results: one JSON object a line."""

    path: Path

    def read(self) -> list[dict[str, Any]]:
        """All results so far; a line that was cut off is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def add(self, result: Mapping[str, Any]) -> None:
        """Appends one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")

    def of(self, bench: str) -> dict[str, list[dict[str, Any]]]:
        """The good results of a benchmark, by contestant, in order."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for result in self.read():
            if result["bench"] == bench and "error" not in result:
                found[result["name"]].append(result)
        return found


def tree_rss_bytes(root: int) -> int:
    """Resident memory of a process and all its descendants, summed (shared pages count in each)."""
    parents, sizes = {}, {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                after_name = (place / "stat").read_text().rpartition(")")[2].split()
                parents[int(place.name)] = int(after_name[1])
                sizes[int(place.name)] = int((place / "statm").read_text().split()[1]) * PAGE
    family, grew = {root}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grew = bool(more)
    return sum(sizes.get(pid, 0) for pid in family)


def run(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> dict[str, Any]:
    """The JSON that a command prints in its last line that is JSON, and ``peak_bytes``; or ``{"error": ...}``."""
    peak, over = [0], threading.Event()
    told = {**os.environ, **env, "BENCH_START": str(time.time()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=told, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def watch() -> None:
        while not over.wait(TICK_S):
            peak[0] = max(peak[0], tree_rss_bytes(process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"error": f"took longer than {LIMIT_S:g} s"}
    finally:
        over.set()
        watcher.join()
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                return {**json.loads(line), "peak_bytes": peak[0]}
    return {"error": " / ".join(err.strip().splitlines()[-3:])[:600] or "no output"}
