"""What a process holds, and has held at most."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil


def reset_peak() -> int:
    """Forget the peak memory where the system can, and return what is in use, in bytes."""
    # Where the system has no such file, the peak is that of all so far: an upper bound.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    if os.path.exists("/proc/self/status"):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
