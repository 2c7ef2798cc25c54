"""Warp volumes on disk: one task an output unit, the pyramid level by level from disk.

A task reads the source window that its unit needs, of every channel and time in turn, and writes
whole units, so no two tasks touch the same file and each can be done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tilereg.lazy.execute import run_tasks
from tilereg.memory import warp_window
from tilereg.progress import Progress, Stage
from tilereg.warping import WarpPlan
from tilereg.windows import Reader, Window, num_windows

if TYPE_CHECKING:
    from distributed import Client

    from tilereg.windows import ChunkWindow

__all__ = [
    "EMPTY",
    "OK",
    "LevelTask",
    "VolumeTask",
    "build_levels",
    "level_bytes",
    "warp_volume",
]

OK, EMPTY = "ok", "empty"


class Image(Protocol):
    """What volumes are read from."""

    def reader(self, level: int = 0, channel: Any = None, time: int = 0) -> Reader:
        """Return the volume of one channel and time."""


class Writer(Protocol):
    """What volumes are written to."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""

    @property
    def level_grids(self) -> Sequence[Any]:
        """Where the voxels of every level are."""

    def unit_shape(self, level: int = 0) -> tuple[int, ...]:
        """Return the voxels that one task writes."""

    def units(self, level: int = 0) -> Iterator[ChunkWindow]:
        """Walk over the windows that one task each writes."""

    def write(
        self, window: Window, block: NDArray[Any], *, level: int, channel: int, time: int
    ) -> None:
        """Write the voxels of a window."""

    def downsample(self, level: int, window: Window, channel: int, time: int) -> None:
        """Write a window of a level from the level below."""


class Finished(Protocol):
    """Remembers which units are done."""

    def read(self) -> set[int]:
        """Return the numbers of the units that are done."""

    def add(self, number: int) -> None:
        """Note that a unit is done."""

    def flush(self) -> None:
        """Make the notes last."""


@dataclass(frozen=True)
class VolumeTask:
    """One output unit of one channel and time.

    Parameters
    ----------
    number : int
        Rank among all units of all channels and times.
    window : Window
        Voxels of the output.
    channel : int
        Channel of the output.
    source_channel : int
        Channel of the moving image.
    time : int
    """

    number: int
    window: Window
    channel: int
    source_channel: int
    time: int


@dataclass(frozen=True)
class LevelTask:
    """One unit of a coarser level, of one channel and time; `number` is its rank among all."""

    number: int
    level: int
    window: Window
    channel: int
    time: int


T = TypeVar("T", VolumeTask, LevelTask)


def warp_volume(
    image: Image,
    writer: Writer,
    plan: WarpPlan,
    *,
    channels: Sequence[int],
    times: Sequence[int],
    client: Client | None = None,
    num_workers: int | None = None,
    progress: Progress,
    title: str = "warp",
    finished: Finished | None = None,
    limit: int | None = None,
) -> dict[str, int]:
    """Warp channels and times of an image into the finest level of another.

    Parameters
    ----------
    image : Image
        The moving image; picklable where `client` is given, as is the writer.
    writer : Writer
        Its finest level has the grid of `plan`.
    plan : WarpPlan
    channels : sequence of int
        Channels of the moving image, in the order in which they are written.
    times : sequence of int
    client : distributed.Client, optional
        Default: threads of this process.
    num_workers : int, optional
        Threads. Default: one a CPU.
    progress : Progress
    title : str
        Name of the stage.
    finished : Finished, optional
        Units that need not be done again.
    limit : int, optional
        Bytes that the warp of one unit may take; larger ones are done in parts.

    Returns
    -------
    dict of str to int
        How many units ended 'ok', and how many were 'empty': outside of the moving image.
    """
    total = num_windows(writer.level_grids[0].shape, writer.unit_shape(0))
    counts = {OK: 0, EMPTY: 0}
    with progress.stage(title, total * len(channels) * len(times)) as stage:
        work = partial(_warp_unit, image, writer, plan, limit)
        todo = _Todo(finished, stage)
        tasks = todo.left(_tasks(writer, channels, times))
        with todo.noted():
            for task, status in run_tasks(work, tasks, client=client, num_workers=num_workers):
                counts[status] += 1
                todo.done(task)
    return counts


class _Todo:
    """The tasks that are left of a stage, and the notes of those that are done."""

    def __init__(self, finished: Finished | None, stage: Stage) -> None:
        """Read what an earlier start has done."""
        self._finished, self._stage = finished, stage
        self._earlier = set() if finished is None else finished.read()
        stage.advance(len(self._earlier))

    def left(self, tasks: Iterator[T]) -> Iterator[T]:
        """Walk over the tasks that are not done."""
        return (task for task in tasks if task.number not in self._earlier)

    def done(self, task: VolumeTask | LevelTask) -> None:
        """Note that a task is done."""
        if self._finished is not None:
            self._finished.add(task.number)
        self._stage.advance()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Make the notes last, also after an error, which no failing note may hide."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self._flush()
            raise
        self._flush()

    def _flush(self) -> None:
        """Write the notes."""
        if self._finished is not None:
            self._finished.flush()


def _tasks(writer: Writer, channels: Sequence[int], times: Sequence[int]) -> Iterator[VolumeTask]:
    """Walk over all units, those of one window after each other."""
    number = 0
    for unit in writer.units(0):
        for time in times:
            for channel, source_channel in enumerate(channels):
                yield VolumeTask(number, unit.window, channel, source_channel, time)
                number += 1


def _warp_unit(
    image: Image, writer: Writer, plan: WarpPlan, limit: int | None, task: VolumeTask
) -> str:
    """Read, warp and write one unit; return its status."""
    reader = image.reader(level=0, channel=task.source_channel, time=task.time)
    # Also where nothing is read: what an earlier, other run may have left there must not stay.
    block = warp_window(plan, reader, task.window, limit=limit)
    writer.write(task.window, block, level=0, channel=task.channel, time=task.time)
    return EMPTY if plan.source_window(task.window).is_empty else OK


def build_levels(
    writer: Writer,
    num_channels: int,
    num_times: int,
    *,
    client: Client | None = None,
    num_workers: int | None = None,
    progress: Progress,
    title: str = "pyramid",
    finished: Callable[[int], Finished] | None = None,
) -> None:
    """Write every coarser level from the one below, which is complete on disk by then.

    `finished` gives for a level what remembers the units of it that are done.
    """
    work = partial(_downsample_unit, writer)
    for level in range(1, len(writer.level_grids)):
        total = num_windows(writer.level_grids[level].shape, writer.unit_shape(level))
        with progress.stage(f"{title}, level {level}", total * num_channels * num_times) as stage:
            todo = _Todo(None if finished is None else finished(level), stage)
            tasks = todo.left(_level_tasks(writer, level, num_channels, num_times))
            with todo.noted():
                for task, _ in run_tasks(work, tasks, client=client, num_workers=num_workers):
                    todo.done(task)


def _level_tasks(
    writer: Writer, level: int, num_channels: int, num_times: int
) -> Iterator[LevelTask]:
    """Walk over all units of a level."""
    number = 0
    for unit in writer.units(level):
        for time in range(num_times):
            for channel in range(num_channels):
                yield LevelTask(number, level, unit.window, channel, time)
                number += 1


def _downsample_unit(writer: Writer, task: LevelTask) -> None:
    """Write one unit of a coarser level."""
    writer.downsample(task.level, task.window, task.channel, task.time)


def level_bytes(writer: Writer) -> int:
    """Return the most bytes that one task of the pyramid takes: its source, its sum, its unit."""
    most = 0
    grids = writer.level_grids
    for level in range(1, len(grids)):
        shape = np.minimum(writer.unit_shape(level), grids[level].shape)
        factors = np.rint(np.divide(grids[level].spacing, grids[level - 1].spacing))
        source = math.prod(np.minimum(shape * factors, grids[level - 1].shape))
        most = max(most, int(source * writer.dtype.itemsize + math.prod(shape) * 24))
    return most
