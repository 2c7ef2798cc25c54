"""Time and peak memory of the stages of a run, this process and its children together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

__all__ = ["Meter", "StageCost"]

_INTERVAL = 0.05


@dataclass(frozen=True)
class StageCost:
    """What one stage took: seconds of wall time, and the most resident memory while it ran."""

    name: str
    seconds: float
    peak_memory_bytes: int


@dataclass
class Meter:
    """Gathers the costs of stages, in order.

    Parameters
    ----------
    stages : list of StageCost
    """

    stages: list[StageCost] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside, also where it fails."""
        sampler = _Sampler()
        start = time.perf_counter()
        sampler.start()
        try:
            yield
        finally:
            peak = sampler.finish()
            self.stages.append(StageCost(name, time.perf_counter() - start, peak))

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the costs as plain dictionaries."""
        return [asdict(stage) for stage in self.stages]

    @property
    def peak_memory_bytes(self) -> int:
        """The most memory of all stages."""
        return max((stage.peak_memory_bytes for stage in self.stages), default=0)


class _Sampler(threading.Thread):
    """Looks at the memory in use again and again."""

    def __init__(self) -> None:
        """Prepare, but do not start."""
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._process = psutil.Process()
        self.peak = 0

    def run(self) -> None:
        """Sample until told to stop."""
        self._look()
        while not self._done.wait(_INTERVAL):
            self._look()

    def finish(self) -> int:
        """Stop, and return the peak in bytes."""
        self._done.set()
        self.join()
        self._look()
        return self.peak

    def _look(self) -> None:
        """Add up this process and its children."""
        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak = max(self.peak, total)
