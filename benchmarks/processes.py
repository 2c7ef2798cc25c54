"""Run a command, and watch what all its processes take together."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]

_POINTS = 400
"""Of a kept timeline, at most."""

_POLL = 0.02
"""Seconds between two questions whether a command has ended."""

_REST = 20.0
"""How much longer than a look the wait after it is, at least: looking takes time from the work."""


@dataclass(frozen=True, kw_only=True)
class CommandCost:
    """What a command took, the processes that it started included."""

    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    """The most that all processes held together at one time."""
    memory_kind: str
    """'PSS': shared pages are divided among those that share them; 'RSS': counted for each."""
    peak_rss_bytes: int
    """The same, shared pages counted for each."""
    processes_at_peak: list[int]
    """Bytes of each process at that time, the command's own first."""
    read_bytes: int
    """Through the system calls of reading, the disk's cache included; None where not known."""
    written_bytes: int
    interval: float
    """Mean seconds between two looks: what comes and goes between them is not seen."""
    timeline: list[tuple[float, int]]
    """Seconds since the start, and bytes of all processes."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class CommandError(Exception):
    """A command ended with an error, or ran past its time."""


@dataclass
class _Watcher:
    """Looks at a process and its descendants, again and again."""

    root: psutil.Process
    start: float
    kind: str = "PSS"
    peak: int = 0
    peak_rss: int = 0
    at_peak: list[int] = field(default_factory=list)
    timeline: list[tuple[float, int]] = field(default_factory=list)
    traffic: dict[int, tuple[int, int]] = field(default_factory=dict)

    def follow(
        self, process: subprocess.Popen[bytes], interval: float, limit: float | None
    ) -> float:
        """Look until a process has ended; return its CPU seconds and those of its children."""
        cpu_seconds = None
        try:
            while cpu_seconds is None:
                begun = time.perf_counter()
                if limit is not None and begun - self.start > limit:
                    raise CommandError(f"Stopped after {limit:.0f} s: {process.args!r}")
                self.look()
                took = time.perf_counter() - begun
                due = begun + max(interval, _REST * took)
                while cpu_seconds is None and time.perf_counter() < due:
                    time.sleep(_POLL)
                    cpu_seconds = _ended(process)
        finally:
            if cpu_seconds is None:
                _end(process)
        return cpu_seconds

    def look(self) -> None:
        """Add one look."""
        seconds, held, rss = time.perf_counter() - self.start, [], 0
        with suppress(psutil.NoSuchProcess):
            for process in [self.root, *self.root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                    size, resident = self._memory(process)
                    held.append(size)
                    rss += resident
                    self._count_traffic(process)
        self.peak_rss = max(self.peak_rss, rss)
        if sum(held) > self.peak:
            self.peak, self.at_peak = sum(held), held
        self.timeline.append((seconds, sum(held)))

    def _memory(self, process: psutil.Process) -> tuple[int, int]:
        """Return the proportional and the resident memory of a process."""
        resident = process.memory_info().rss
        if self.kind == "RSS":
            return resident, resident
        memory = process.memory_full_info()
        if not hasattr(memory, "pss"):
            self.kind = "RSS"
            return resident, resident
        return memory.pss, resident

    def _count_traffic(self, process: psutil.Process) -> None:
        """Note how much a process has read and written so far."""
        if not hasattr(process, "io_counters"):
            return
        counters = process.io_counters()
        if hasattr(counters, "read_chars"):
            self.traffic[process.pid] = (counters.read_chars, counters.write_chars)

    def thinned(self) -> list[tuple[float, int]]:
        """Return the timeline in few points, each the largest of its neighbours."""
        step = -(-len(self.timeline) // _POINTS)
        parts = [self.timeline[i : i + step] for i in range(0, len(self.timeline), step)]
        return [(round(part[0][0], 2), max(size for _, size in part)) for part in parts]


def run_command(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    interval: float = 0.1,
    time_limit: float | None = None,
    cores: int | None = None,
) -> CommandCost:
    """Run a command to its end and return what it took.

    Parameters
    ----------
    command : sequence of str
    environment : mapping, optional
        Variables that are set beside those of this process. The repository's root is always
        where Python looks for modules.
    folder : Path, optional
        Where the command runs. Default: here.
    interval : float, seconds
        Between two looks at its memory, at least; looking takes a twentieth of the time at most.
    time_limit : float, seconds, optional
        After which it is ended, with all that it started.
    cores : int, optional
        To how many of the machine's cores it is bound, where the system can. Default: all.

    Raises
    ------
    CommandError
        With the last lines that it printed, if it failed or was late.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            list(command), env=variables, cwd=folder, stdout=said, stderr=subprocess.STDOUT
        )
        _bind(process, cores)
        watcher = _Watcher(root=psutil.Process(process.pid), start=time.perf_counter())
        cpu_seconds = watcher.follow(process, interval, time_limit)
        seconds = time.perf_counter() - watcher.start
        if process.returncode:
            said.seek(0)
            lines = said.read().strip().splitlines()[-12:]
            raise CommandError("\n".join([f"Failed: {' '.join(command)}", *lines]))
    return CommandCost(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        peak_memory_bytes=watcher.peak,
        memory_kind=watcher.kind,
        peak_rss_bytes=watcher.peak_rss,
        processes_at_peak=watcher.at_peak,
        read_bytes=sum(read for read, _ in watcher.traffic.values()),
        written_bytes=sum(written for _, written in watcher.traffic.values()),
        interval=seconds / len(watcher.timeline),
        timeline=watcher.thinned(),
    )


def run_tilereg(
    *arguments: str, time_limit: float | None = None, cores: int | None = None
) -> CommandCost:
    """Run the command line of tilereg in a process of its own."""
    command = [sys.executable, "-m", "tilereg", *arguments]
    return run_command(command, time_limit=time_limit, cores=cores)


def _bind(process: subprocess.Popen[bytes], cores: int | None) -> None:
    """Bind a process that has just begun, and so all that it will start, to some cores."""
    if cores is None or not hasattr(psutil.Process, "cpu_affinity"):
        return
    with suppress(psutil.NoSuchProcess):
        bound = psutil.Process(process.pid)
        bound.cpu_affinity(sorted(bound.cpu_affinity())[:cores])


def _ended(process: subprocess.Popen[bytes]) -> float | None:
    """Return the CPU seconds of a process and of its waited-for children; None while it runs."""
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
