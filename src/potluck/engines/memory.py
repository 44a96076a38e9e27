"""The largest resident memory that this process has had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

KIB = 1024


def peak_rss_bytes() -> int:
    """Bytes. On Linux from VmHWM, since ru_maxrss of a spawned process also remembers its parent's size."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KIB


def rss_bytes() -> int | None:
    """The resident memory of this process now, in bytes; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()
