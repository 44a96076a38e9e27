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
