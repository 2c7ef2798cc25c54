"""The moving image and its labels on the fixed grid: planned, checked and written.

All that can be known to fail is found while planning, before spots are sought: settings that do
not fit the image, labels that cannot be warped, tasks that do not fit into memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tilereg.config import Settings
from tilereg.errors import InputError, OutputError, ResourceError, TileregError
from tilereg.grid import Grid
from tilereg.io.ome_zarr import ImageWriter, OmeZarrImage, begin_image, plan_image, remove_store
from tilereg.io.run_folder import RunFolder, check_apart
from tilereg.io.stores import Location
from tilereg.lazy.budget import task_budget
from tilereg.lazy.volume import build_levels, level_bytes, warp_volume
from tilereg.memory import check_memory
from tilereg.progress import Progress
from tilereg.summary import format_size
from tilereg.transform import Transform
from tilereg.warping import WarpPlan

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Part", "check_parts", "plan_parts", "write_parts", "write_replacing"]

_AXES = "tczyx"
# So many chunks does zarr decode at a time.
_CHUNKS_AT_ONCE = 10


@dataclass(frozen=True, kw_only=True)
class Part:
    """An image that is warped as a whole: the moving image, or one of its label images.

    Parameters
    ----------
    image : OmeZarrImage
        What is warped.
    writer : ImageWriter
        What it becomes; nothing is written yet.
    channels : tuple of int
        Channels of `image` that are written, in this order.
    order : int
        Of the interpolation.
    fill_value : float
        Value outside of `image`.
    key : str
        Names the part in the folder of a run.
    label : str or None
        Name of the label image.
    """

    image: OmeZarrImage
    writer: ImageWriter
    channels: tuple[int, ...]
    order: int
    fill_value: float
    key: str
    label: str | None

    @property
    def num_volumes(self) -> int:
        """Channels times time points."""
        return len(self.channels) * self.image.num_times

    def plan(self, transform: Transform) -> WarpPlan:
        """Return what all tasks of the warp have in common."""
        return WarpPlan(
            transform=transform,
            grid=self.writer.level_grids[0],
            moving_grid=self.image.grid,
            dtype=self.image.dtype,
            order=self.order,
            fill_value=self.fill_value,
        )

    @property
    def store_bytes(self) -> int:
        """Bytes that reading and writing take beside the warp: chunks as they are coded."""
        level = self.image.levels[0]
        chunks = math.prod(-(-n // c) for n, c in zip(level.grid.shape, level.chunks, strict=True))
        decoded = min(_CHUNKS_AT_ONCE, chunks) * math.prod(level.chunks)
        unit = math.prod(self.writer.unit_shape(0))
        return (decoded + unit) * self.image.dtype.itemsize


def plan_parts(
    image: OmeZarrImage, grid: Grid, location: str | Path, settings: Settings
) -> list[Part]:
    """Return the parts that an image consists of on another grid, first the image itself.

    Raises
    ------
    InputError
        If a setting does not fit the image, or a label image cannot be warped.
    """
    place = Location.of(location)
    parts = [_part(image, grid, place.url, settings, _channels(image, settings.warp.channels))]
    for number, name in enumerate(image.labels):
        label = image.label(name)
        if ".." in name.split("/"):
            raise InputError(f"Invalid name '{name}' of a label image in '{image.location}'.")
        path = place.child("labels").child(name).url
        channels = tuple(range(len(label.channels)))
        parts.append(_part(label, grid, path, settings, channels, number, name))
    return parts


def _channels(image: OmeZarrImage, wanted: str | Sequence[int | str]) -> tuple[int, ...]:
    """Return the numbers of the wanted channels."""
    if isinstance(wanted, str):
        return tuple(range(len(image.channels)))
    if not wanted:
        raise InputError("warp.channels is an empty list. Name one channel, or write 'all'.")
    if "c" not in image.axes and len(wanted) > 1:
        raise InputError(
            f"warp.channels = {list(wanted)} names {len(wanted)} channels, but '{image.location}' "
            "has no channel axis. Leave the setting out."
        )
    return tuple(image.channel_index(channel) for channel in wanted)


def _part(
    image: OmeZarrImage,
    grid: Grid,
    location: str,
    settings: Settings,
    channels: tuple[int, ...],
    number: int = 0,
    label: str | None = None,
) -> Part:
    """Plan one image, or one label image."""
    output, axes = settings.output, tuple(axis for axis in _AXES if axis in image.axes)
    writer = plan_image(
        location,
        grid=grid,
        dtype=image.dtype,
        axes=axes,
        channels=tuple(image.channels[c] for c in channels) if "c" in axes else (),
        num_times=image.num_times,
        version=output.version,
        chunks=output.chunks,
        shards=output.shards,
        levels=output.levels,
        compression=output.compression,
        name=image.name,
        omero=image.omero,
        omero_channels=channels,
        time_step=image.time_step,
        time_unit=image.time_unit,
        label_metadata=image.label_metadata,
        is_label=label is not None,
    )
    part = Part(
        image=image,
        writer=writer,
        channels=channels,
        order=settings.warp.order if label is None else 0,
        fill_value=settings.warp.fill_value if label is None else 0,
        key="image" if label is None else f"label_{number}",
        label=label,
    )
    # A fill value that the voxels cannot hold, or a label image of other axes, shows now.
    part.plan(Transform.identity(grid.ndim))
    return part


def check_parts(parts: Iterable[Part], transform: Transform, budget: int) -> list[int]:
    """Return the bytes that each part's warp tasks may take.

    Raises
    ------
    ResourceError
        If a task of the warp does not even fit in pieces, or one of the pyramid does not fit.
    """
    limits = []
    for part in parts:
        needed = level_bytes(part.writer)
        if needed > budget:
            unit = part.writer.unit_shape(0)
            raise ResourceError(
                f"One pyramid task needs {format_size(needed)}, more than the "
                f"{format_size(budget)} of a thread: it writes {unit} voxels of "
                f"'{part.writer.location}'. Set smaller output.chunks or output.shards, use "
                "fewer threads a worker, or give workers more memory."
            )
        limit = max(0, budget - part.store_bytes)
        check_memory(part.plan(transform), part.writer.units(0), limit)
        limits.append(limit)
    return limits


def write_parts(
    parts: Sequence[Part],
    transform: Transform,
    *,
    memory: str | None,
    client: Client | None,
    progress: Progress,
    folder: RunFolder | None = None,
) -> None:
    """Write all channels, time points and labels; the image is valid when all of it is there.

    Parameters
    ----------
    parts : sequence of Part
    transform : Transform
    memory : str or None
        Memory of a worker, as `compute.memory`.
    client, progress
        As in `tilereg.register`.
    folder : RunFolder, optional
        Remembers what is finished. Default: all is written.

    Raises
    ------
    ImageError, OutputError
        If something cannot be read or written.
    ResourceError
        If a task does not fit into memory; nothing is written then.
    """
    limits = check_parts(parts, transform, task_budget(client, memory))
    _begin(parts[0], folder)
    _write_begun(parts, limits, transform, client, progress, folder)


def _write_begun(
    parts: Sequence[Part],
    limits: Sequence[int],
    transform: Transform,
    client: Client | None,
    progress: Progress,
    folder: RunFolder | None = None,
) -> None:
    """Write all parts, of which the first has its arrays already."""
    for part, limit in zip(parts, limits, strict=True):
        if part is not parts[0]:
            _begin(part, folder)
        _fill(part, transform, limit, client, progress, folder)
    for part in reversed(parts):
        part.writer.finish()


def _begin(part: Part, folder: RunFolder | None) -> None:
    """Create the empty arrays, unless an earlier start has."""
    if folder is None:
        begin_image(part.writer)
        return
    begun = folder.marked(f"create_{part.key}") is not None
    if begun and not part.writer.place.exists():
        raise OutputError(
            f"'{part.writer.place}' of the earlier start is gone, so the run cannot go on. Start "
            "anew with --overwrite."
        )
    if not begun:
        # An earlier start may have ended in the middle of this.
        part.writer.place.remove()
    begin_image(part.writer, resume=begun)
    folder.mark(f"create_{part.key}")


def _fill(
    part: Part,
    transform: Transform,
    limit: int,
    client: Client | None,
    progress: Progress,
    folder: RunFolder | None,
) -> None:
    """Write the voxels of all levels."""
    of_label = "" if part.label is None else f" of label {part.label}"
    warp_volume(
        part.image,
        part.writer,
        part.plan(transform),
        channels=part.channels,
        times=range(part.image.num_times),
        client=client,
        progress=progress,
        title=f"warp{of_label}",
        finished=None if folder is None else folder.finished(f"units_{part.key}"),
        limit=limit,
    )
    build_levels(
        part.writer,
        len(part.channels),
        part.image.num_times,
        client=client,
        progress=progress,
        title=f"pyramid{of_label}",
        finished=None
        if folder is None
        else lambda level: folder.finished(f"units_{part.key}_level{level}"),
    )


def write_replacing(
    parts: Sequence[Part],
    transform: Transform,
    *,
    inputs: Sequence[str | Path],
    memory: str | None,
    client: Client | None,
    progress: Progress,
    overwrite: bool,
) -> None:
    """Write as `write_parts` does, over an earlier OME-Zarr if allowed; leave no half.

    Raises
    ------
    OutputError
        If the output exists and may not be replaced, holds an input, or cannot be written.
    """
    place = parts[0].writer.place
    if place.exists():
        if not overwrite:
            raise OutputError(
                f"'{place}' exists already. Remove it, or replace it with --overwrite."
            )
        check_apart(place.url, inputs)
    limits = check_parts(parts, transform, task_budget(client, memory))
    if place.exists():
        remove_store(place.url)
    # What another writer has begun in between is not ours: this raises, and nothing is removed.
    begin_image(parts[0].writer)
    try:
        _write_begun(parts, limits, transform, client, progress)
    except BaseException:
        # Also after an interrupt: half an image is of no use to anyone.
        with suppress(OSError, TileregError):
            place.remove()
        raise
