"""Writing OME-Zarr: voxels unit by unit, coarser levels from finer, the OME metadata last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.io.arrays import array_of
from tilereg.io.boxes import check_inside, full_box
from tilereg.io.description import group_document, ome_attributes
from tilereg.io.nodes import read_document, read_node
from tilereg.io.pyramid import block_mean, most_common
from tilereg.io.reading import (
    Level,
    OmeZarrImage,
    ZarrReader,
    open_image,
)
from tilereg.io.stores import Location, outputs
from tilereg.windows import ChunkWindow, Window, iter_windows

__all__ = ["ImageWriter", "write_group"]


@dataclass(frozen=True, kw_only=True)
class ImageWriter:
    """Writes the voxels of one image. Picklable; holds no open file.

    A task writes whole units (`units`), so that no two tasks touch the same file. The group is
    no valid image before `finish`.

    Parameters
    ----------
    place : Location
        Of the image.
    name : str
        Of the image, in its metadata.
    version : str
        "0.4" or "0.5".
    axes : tuple of str
        The axes in the order of the arrays.
    channels : tuple of str
        Names of the channels.
    num_times : int
        Number of times.
    levels : tuple of Level
        The pyramid, finest first.
    factors : tuple of tuple of int
        From each level to the next, an axis each.
    omero : mapping or None
        Display settings to carry over.
    is_label : bool
        Whether the image is a label image.
    omero_channels : tuple of int or None
        The channel of `omero` that each channel is.
    time_step : float
        Between two times, in `time_unit`.
    time_unit : str or None
        Of the time axis.
    label_metadata : mapping or None
        What is known of the labels: their colours and properties.
    """

    place: Location
    name: str
    version: Literal["0.4", "0.5"]
    axes: tuple[str, ...]
    channels: tuple[str, ...]
    num_times: int
    levels: tuple[Level, ...]
    factors: tuple[tuple[int, ...], ...]
    omero: Mapping[str, Any] | None = field(repr=False)
    is_label: bool
    omero_channels: tuple[int, ...] | None = None
    time_step: float = 1.0
    time_unit: str | None = None
    label_metadata: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)

    @property
    def location(self) -> str:
        """Absolute path or URL."""
        return str(self.place)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.levels[0].dtype

    @property
    def zarr_format(self) -> int:
        """The zarr format of the version, 2 or 3."""
        return 3 if self.version == "0.5" else 2

    @property
    def array_key(self) -> str:
        """The file name of an array's metadata document."""
        return "zarr.json" if self.version == "0.5" else ".zarray"

    @property
    def level_grids(self) -> tuple[Grid, ...]:
        """Where the voxels of every level are."""
        return tuple(level.grid for level in self.levels)

    def unit_shape(self, level: int = 0) -> tuple[int, ...]:
        """Return the voxels an axis of what one task writes: a shard, or a chunk."""
        return self._level(level).shards or self._level(level).chunks

    def units(self, level: int = 0) -> Iterator[ChunkWindow]:
        """Walk over the windows that one task each writes; together they are the level."""
        return iter_windows(self._level(level).grid.shape, self.unit_shape(level))

    def write(
        self,
        window: Window,
        block: NDArray[Any],
        *,
        level: int = 0,
        channel: int = 0,
        time: int = 0,
    ) -> None:
        """Write the voxels of a window made of whole units. Writing twice is harmless.

        Chunks of nothing but the fill value are not stored.

        Parameters
        ----------
        window : Window
        block : ndarray
            Of the window's shape; its type must fit into the image's without loss.
        level, channel, time : int
            Where. Default 0.

        Raises
        ------
        InputError
            If window, block, level, channel or time do not fit the image.
        OutputError
            If the disk is full or may not be written.
        """
        target = self._level(level)
        self._check_window(window, target)
        self._check_volume(channel, time)
        block = np.asarray(block)
        if block.shape != window.shape:
            raise InputError(
                f"A block of shape {block.shape} does not fit the window {window.start}.."
                f"{window.stop}, whose shape is {window.shape}."
            )
        both_float = block.dtype.kind == self.dtype.kind == "f"
        if not (both_float or np.can_cast(block.dtype, self.dtype, "safe")):
            raise InputError(
                f"A block of {block.dtype} does not fit into '{self.place}', whose voxels are "
                f"{self.dtype}. Round and clip it first."
            )
        if window.is_empty:
            return
        array = array_of(self.place, target.path, target.document, read_only=False)
        box = full_box(self.axes, window, channel=channel, time=time)
        lead = (1,) * (len(self.axes) - window.ndim)
        with outputs("write", f"level '{target.path}' of '{self.place}'"):
            array[tuple(slice(a, b) for a, b in box)] = block.astype(
                self.dtype, copy=False
            ).reshape(lead + block.shape)

    def read_level(self, level: int, channel: int = 0, time: int = 0) -> ZarrReader:
        """Return what reads a volume of the unfinished image.

        Raises
        ------
        InputError
            If there is no such level, channel or time.
        """
        self._check_volume(channel, time)
        return ZarrReader(
            place=self.place,
            level=self._level(level),
            axes=self.axes,
            channel=channel,
            time=time,
        )

    def downsample(self, level: int, window: Window, channel: int = 0, time: int = 0) -> None:
        """Write a window of a level from the level below it, which is on disk already.

        Intensities are block means, integers rounded with halves to even; labels are the most
        common voxel of each block. It holds the source window, `2**D` times the window, and the
        result.

        Parameters
        ----------
        level : int
            From 1 on.
        window : Window
            Of whole units of this level.
        channel, time : int
            Which volume. Default 0.

        Raises
        ------
        InputError
            If level, window, channel or time do not fit the image.
        ImageError
            If the level below cannot be read.
        OutputError
            If the level cannot be written.
        """
        target = self._level(level)
        if level == 0:
            raise InputError("Level 0 is made from no other level. Give a level from 1 on.")
        self._check_window(window, target)
        factors = self.factors[level - 1]
        source = Window(
            tuple(a * f for a, f in zip(window.start, factors, strict=True)),
            tuple(b * f for b, f in zip(window.stop, factors, strict=True)),
        )
        block = self.read_level(level - 1, channel, time).read(source)
        counted = self.is_label or self.dtype.kind == "b"
        reduced = most_common(block, factors) if counted else block_mean(block, factors)
        self.write(window, reduced, level=level, channel=channel, time=time)

    def finish(self) -> OmeZarrImage:
        """Write the OME metadata, which makes the group an image, and open it.

        A label image below `<image>/labels` is entered into the list of that group.

        Raises
        ------
        OutputError
            If the metadata cannot be written.
        """
        attributes = ome_attributes(
            name=self.name,
            version=self.version,
            axes=self.axes,
            dtype=self.dtype,
            channels=self.channels,
            levels=[(level.path, level.grid) for level in self.levels],
            omero=self.omero,
            omero_channels=self.omero_channels,
            is_label=self.is_label,
            label_metadata=self.label_metadata,
            time_step=self.time_step,
            time_unit=self.time_unit,
        )
        with outputs("write", f"the metadata of '{self.place}'"):
            if self.is_label and self.place.parent.name == "labels":
                self._enter_label()
            write_group(self.place, self.version, attributes)
        return open_image(self.location, self.place.options)

    def _enter_label(self) -> None:
        """Add the name of this label image to the list of the group above it."""
        parent = self.place.parent
        node = read_node(parent)
        attributes: dict[str, Any] = dict(node.ome) if node else {}
        listed = attributes.get("labels")
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        if self.version == "0.5":
            attributes.setdefault("version", self.version)
        if self.place.name not in names:
            attributes["labels"] = [*names, self.place.name]
            write_group(parent, self.version, attributes)

    def _level(self, level: int) -> Level:
        """Return a level by its number."""
        if not 0 <= level < len(self.levels):
            raise InputError(
                f"No level {level} in '{self.place}'. It has {len(self.levels)} levels, from 0 on."
            )
        return self.levels[level]

    def _check_volume(self, channel: int, time: int) -> None:
        """Check that there are this channel and time."""
        if not (0 <= channel < max(1, len(self.channels)) and 0 <= time < self.num_times):
            raise InputError(
                f"No channel {channel} at time {time} in '{self.place}'. It has "
                f"{max(1, len(self.channels))} channels and {self.num_times} times, from 0 on."
            )

    def _check_window(self, window: Window, level: Level) -> None:
        """Check that a window lies inside a level and is made of whole units."""
        shape, unit = level.grid.shape, level.shards or level.chunks
        check_inside(window, shape, f"level '{level.path}' of '{self.place}'")
        whole = all(
            a % u == 0 and (b % u == 0 or b == n)
            for a, b, u, n in zip(window.start, window.stop, unit, shape, strict=True)
        )
        if not whole:
            raise InputError(
                f"Window {window.start}..{window.stop} is not made of whole units of {unit} "
                f"voxels of level '{level.path}' of '{self.place}'. Write units, so that no two "
                "tasks share a file."
            )


def write_group(place: Location, version: str, attributes: Mapping[str, Any]) -> None:
    """Write the metadata documents of a group; attributes that are not NGFF's are kept."""
    old = (read_document(place, "zarr.json") or {}) if version == "0.5" else {}
    others = old.get("attributes")
    others = others if isinstance(others, dict) else {}
    for key, document in group_document(version, attributes, others).items():
        place.write_json(key, document)
