"""What a run would do, told from the metadata alone: tasks, voxels, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tilereg import given, stages
from tilereg.config import Settings
from tilereg.detector import Detector, as_sigma
from tilereg.errors import InputError
from tilereg.io.ome_zarr import OmeZarrImage, open_image
from tilereg.io.run_folder import RunFolder, check_apart
from tilereg.kernels.prefilter import PREFILTER_RADIUS
from tilereg.lazy.budget import num_threads
from tilereg.lazy.volume import level_bytes
from tilereg.registered import Part, plan_parts
from tilereg.spots import candidate_sigmas, sample_bytes
from tilereg.summary import format_size
from tilereg.transform import Transform
from tilereg.windows import num_windows

__all__ = ["REGISTERED", "RunPlan", "check_images", "plan"]

REGISTERED = "registered.ome.zarr"

# No transform is known yet: its source window is taken to be so many times as wide as its block.
_WIDER = 1.5


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """How much work and memory a run is.

    Parameters
    ----------
    output : str
        Folder that would be made.
    num_detect_tasks, num_warp_tasks, num_pyramid_tasks : int
    voxels_read, bytes_read : int
        Uncompressed; overlaps of neighbouring tasks and the first look are not counted.
    voxels_written, bytes_written : int
        Uncompressed, all levels.
    detect_task_bytes, warp_task_bytes, pyramid_task_bytes : int
        Memory that one task takes, arrays and what reading and writing hold.
    sample_bytes : int
        Memory of the first look at an image, which finds the size of its spots; taken once, by
        the process that starts the run.
    num_threads : int
        Tasks at a time: worker processes of one thread, or threads of one process.
    memory_bytes : int
        The most that all threads take together, or the first look, beside the processes
        themselves.
    assumed : tuple of str
        What is not known before the run.
    """

    output: str
    num_detect_tasks: int
    num_warp_tasks: int
    num_pyramid_tasks: int
    voxels_read: int
    bytes_read: int
    voxels_written: int
    bytes_written: int
    detect_task_bytes: int
    warp_task_bytes: int
    pyramid_task_bytes: int
    sample_bytes: int
    num_threads: int
    memory_bytes: int
    assumed: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to know, as (name, text)."""
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        first = f"up to {format_size(self.sample_bytes)}" if self.sample_bytes else "none"
        return [
            ("output", self.output),
            ("first look", first),
            ("detection", _work(self.num_detect_tasks, self.detect_task_bytes)),
            ("warp", _work(self.num_warp_tasks, self.warp_task_bytes)),
            ("pyramid", _work(self.num_pyramid_tasks, self.pyramid_task_bytes)),
            ("read", _amount(self.voxels_read, self.bytes_read)),
            ("written", _amount(self.voxels_written, self.bytes_written)),
            ("memory", f"up to {format_size(self.memory_bytes)} in {threads}"),
            *(("assumed", text) for text in self.assumed),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers as plain data."""
        return asdict(self) | {"assumed": list(self.assumed)}


def _work(count: int, size: int) -> str:
    """Return tasks and their memory."""
    tasks = "1 task" if count == 1 else f"{count:,} tasks"
    return f"{tasks}, up to {format_size(size)} each" if count else "none"


def _amount(voxels: int, size: int) -> str:
    """Return voxels and their bytes."""
    return f"{voxels:,} voxels, {format_size(size)} uncompressed"


def check_images(fixed: OmeZarrImage, moving: OmeZarrImage) -> None:
    """Raise if two images cannot be registered with each other.

    Raises
    ------
    InputError
        If one has a z axis and the other has not.
    """
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"Fixed and moving image have no common axes: '{fixed.location}' has "
            f"{', '.join(fixed.spatial_axes)}, '{moving.location}' has "
            f"{', '.join(moving.spatial_axes)}. Both must be 2D (y, x) or both 3D (z, y, x)."
        )


def plan(
    fixed: str | Path,
    moving: str | Path,
    output: str | Path,
    *,
    settings: Settings | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> RunPlan:
    """Tell what `tilereg.register` would do; only metadata are read, nothing is written.

    Parameters
    ----------
    fixed, moving, output, settings, overwrite, resume
        As in `tilereg.register`. A run that would go on is counted as a whole.

    Returns
    -------
    RunPlan

    Raises
    ------
    ImageError, InputError
        If an image cannot be opened, or a setting does not fit the images.
    OutputError
        If the output is taken.
    """
    resolved = Settings() if settings is None else settings
    given.check(resolved)
    images = open_image(fixed), open_image(moving)
    check_images(*images)
    sources = stages.Sources.of(*images, resolved)
    folder = RunFolder.at(output)
    check_apart(folder.location.url, [image.location for image in images])
    folder.check_free(overwrite=overwrite, resume=resume)
    parts = plan_parts(images[1], images[0].grid, folder.path(REGISTERED), resolved)
    sought = [
        source
        for role, source in (("fixed", sources.fixed), ("moving", sources.moving))
        if given.table_of(resolved, role) is None
    ]
    detection = [_detection(source, resolved) for source in sought]
    tasks = {
        "detect_task_bytes": max((size for _, size in detection), default=0),
        "warp_task_bytes": max(_warp_task_bytes(part) for part in parts),
        "pyramid_task_bytes": max(level_bytes(part.writer) for part in parts),
    }
    looks = [
        sample_bytes(source.reader.grid, source.reader.dtype, resolved.detect.sigma)
        for source in sought
    ]
    sample = max(looks, default=0)
    threads = num_threads(workers=resolved.compute.workers)
    read, written = _traffic(sources, sought, parts)
    return RunPlan(
        output=folder.location.url,
        num_detect_tasks=sum(count for count, _ in detection),
        num_warp_tasks=sum(_num_units(part, 0) * part.num_volumes for part in parts),
        num_pyramid_tasks=sum(
            _num_units(part, level) * part.num_volumes
            for part in parts
            for level in range(1, len(part.writer.level_grids))
        ),
        voxels_read=read[0],
        bytes_read=read[1],
        voxels_written=written[0],
        bytes_written=written[1],
        **tasks,
        sample_bytes=sample,
        num_threads=threads,
        memory_bytes=max(threads * max(tasks.values()), sample),
        assumed=_assumed(resolved),
    )


def _assumed(settings: Settings) -> tuple[str, ...]:
    """Return what the numbers rest on."""
    texts = [
        f"a warp task reads {_WIDER:g} times as many voxels along each axis as it would without a "
        "deformation; the run itself knows"
    ]
    is_sought = None in (settings.spots.fixed, settings.spots.moving)
    if settings.detect.sigma is None and is_sought:
        texts.append("spots are as large as any that the automatic choice looks for")
    if settings.compute.scheduler or settings.compute.scheduler_file:
        texts.append("as many threads as this machine has; the cluster was not asked")
    return tuple(texts)


def _stand_in(source: stages.Source, settings: Settings) -> Detector:
    """Return a detector of spots as large as they may turn out to be."""
    grid, sigma = source.reader.grid, settings.detect.sigma
    largest = as_sigma(candidate_sigmas(grid)[-1] if sigma is None else sigma, grid)
    return Detector(sigmas=(largest,), thresholds=(1.0,), noise=(1.0,))


def _detection(source: stages.Source, settings: Settings) -> tuple[int, int]:
    """Return how many tasks a detection has, and the bytes of one."""
    reader, block = source.reader, stages.detect_chunks(source.reader)
    size = _stand_in(source, settings).bytes_needed(block, reader.grid, reader.dtype)
    return num_windows(reader.shape, block), size


def _num_units(part: Part, level: int) -> int:
    """Return how many tasks a level of one volume has."""
    return num_windows(part.writer.level_grids[level].shape, part.writer.unit_shape(level))


def _warp_task_bytes(part: Part) -> int:
    """Return the bytes of the largest task of a warp, its transform being unknown."""
    unit = part.writer.unit_shape(0)
    grid, moving = part.writer.level_grids[0], part.image.grid
    halo = 2 * (1 + PREFILTER_RADIUS) if part.order == 3 else 2
    extent = np.multiply(unit, grid.spacing) * _WIDER / moving.spacing
    source = np.minimum(np.ceil(extent) + halo, moving.shape)
    shape = tuple(int(n) for n in source)
    plan = part.plan(Transform.identity(grid.ndim))
    return plan.bytes_needed(shape, unit) + part.store_bytes


def _traffic(
    sources: stages.Sources, sought: list[stages.Source], parts: Iterable[Part]
) -> tuple[tuple[int, int], ...]:
    """Return voxels and bytes that are read, and that are written."""
    read, written = [], []
    readers = [source.reader for source in sought]  # for detection, and for the judgement
    for reader in (*readers, sources.fixed.small(), sources.moving.small()):
        read.append((reader.grid.size, reader.dtype.itemsize))
    for part in parts:
        size, grids = part.image.dtype.itemsize, part.writer.level_grids
        for grid in (part.image.grid, *grids[:-1]):
            read.append((grid.size * part.num_volumes, size))
        for grid in grids:
            written.append((grid.size * part.num_volumes, size))
    return _sum(read), _sum(written)


def _sum(volumes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the voxels and the bytes of volumes, each of a number of voxels and their size."""
    return sum(count for count, _ in volumes), sum(math.prod(volume) for volume in volumes)
