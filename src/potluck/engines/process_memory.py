"""The largest resident memory that this process has had, and how it treats memory that was freed."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

KIB = 1024
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The numbers of mallopt(3) in glibc's malloc.h."""
KEPT_BYTES, MAPPED_FROM_BYTES = 512 * KIB**2, 32 * KIB**2


def keep_freed_memory() -> None:
    """Lets glibc keep up to 512 MB of freed memory for the next training step, instead of returning it to the kernel.

    Otherwise each step faults in the pages of its activations and gradients anew. Elsewhere it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc
        return
    mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


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
