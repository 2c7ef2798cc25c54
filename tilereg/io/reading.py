"""Reading OME-Zarr: what an image is, and its voxels window by window."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import ImageError
from tilereg.grid import AXES, Grid
from tilereg.io import metadata
from tilereg.io.arrays import array_of, parse_array, read_box
from tilereg.io.boxes import check_inside, full_box, spatial_block
from tilereg.io.nodes import Node, find_image, label_names, read_document
from tilereg.io.stores import Location
from tilereg.windows import Window

__all__ = ["Level", "OmeZarrImage", "ZarrReader", "open_image"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the pyramid.

    Parameters
    ----------
    path : str
        Of its array, below the image.
    grid : Grid
        Where its voxels are, in micrometre.
    shape : tuple of int
        Of the array, all axes in the order of the image.
    dtype : dtype
        Of a voxel, in this machine's byte order.
    chunks : tuple of int
        Of the spatial axes.
    shards : tuple of int or None
        Of the spatial axes; None where the array has none.
    document : str
        The metadata document of the array.
    """

    path: str
    grid: Grid
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    document: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class ZarrReader:
    """One spatial volume of one level, channel and time. Picklable; opens on the first read.

    Parameters
    ----------
    place : Location
        Of the image.
    level : Level
        The level.
    axes : tuple of str
        The axes in the order of the array.
    channel, time : int
        Which volume.
    """

    place: Location
    level: Level
    axes: tuple[str, ...]
    channel: int = 0
    time: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return self.level.grid.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.level.dtype

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        return self.level.grid

    @property
    def chunks(self) -> tuple[int, ...]:
        """Number of voxels of a chunk an axis."""
        return self.level.chunks

    def read(self, window: Window) -> NDArray[Any]:
        """Read the voxels of a window; chunks that are not stored are the fill value.

        Raises
        ------
        InputError
            If the window does not lie inside the volume.
        ImageError
            If a chunk is damaged or cannot be reached.
        """
        check_inside(window, self.shape, f"level '{self.level.path}' of '{self.place}'")
        if window.is_empty:
            return np.zeros(window.shape, dtype=self.dtype)
        array = array_of(self.place, self.level.path, self.level.document, read_only=True)
        box = full_box(self.axes, window, channel=self.channel, time=self.time)
        block = read_box(array, box, place=str(self.place))
        return np.ascontiguousarray(spatial_block(block, self.axes), dtype=self.dtype)


@dataclass(frozen=True, kw_only=True)
class OmeZarrImage:
    """What an OME-Zarr image is. Picklable; holds no open file.

    Parameters
    ----------
    location : str
        Absolute path or URL.
    name : str
        From the metadata, else from the location.
    version : str
        "0.4" or "0.5".
    axes : tuple of str
        Out of t, c, z, y, x, in the order of the arrays.
    channels : tuple of str
        Names of the channels, at least one.
    num_times : int
        Number of times, at least one.
    levels : tuple of Level
        The pyramid, finest first.
    omero : mapping or None
        Display settings as they are in the file.
    labels : tuple of str
        Names of the label images.
    notes : tuple of str
        What was assumed, a sentence each.
    is_label : bool
        Whether the image is a label image.
    place : Location
        Path or URL with its storage options.
    time_step : float
        Between two times, in `time_unit`; 1 where the file does not say.
    time_unit : str or None
        As it is in the file.
    label_metadata : mapping or None
        Colours and properties of labels as they are in the file; None for other images.
    """

    location: str
    name: str
    version: str
    axes: tuple[str, ...]
    channels: tuple[str, ...]
    num_times: int
    levels: tuple[Level, ...]
    omero: Mapping[str, Any] | None = field(repr=False)
    labels: tuple[str, ...]
    notes: tuple[str, ...]
    is_label: bool
    place: Location = field(repr=False)
    time_step: float = 1.0
    time_unit: str | None = None
    label_metadata: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)

    @property
    def spatial_axes(self) -> tuple[str, ...]:
        """The axes of a volume, ('z', 'y', 'x') or ('y', 'x')."""
        return self.grid.axes

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.grid.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self.levels[0].dtype

    @property
    def grid(self) -> Grid:
        """Where the voxels of the finest level are."""
        return self.levels[0].grid

    def channel_index(self, channel: int | str | None) -> int:
        """Return the number of a channel given by number or name; None is the first.

        Raises
        ------
        ImageError
            If there is no such channel, or several of this name.
        """
        if channel is None:
            return 0
        listed = ", ".join(f"{i} '{name}'" for i, name in enumerate(self.channels))
        if isinstance(channel, str):
            found = [i for i, name in enumerate(self.channels) if name == channel]
            if len(found) == 1:
                return found[0]
            if found:
                raise ImageError(
                    f"{len(found)} channels of '{self.place}' are named '{channel}': {listed}. "
                    "Give the number."
                )
        number = int(channel) if str(channel).isdecimal() else -1
        # The command line cannot tell a number from a name that is one.
        if number >= len(self.channels) and self.channels.count(str(number)) == 1:
            number = self.channels.index(str(number))
        if not 0 <= number < len(self.channels):
            raise ImageError(f"No channel {channel!r} in '{self.place}'. It has {listed}.")
        return number

    def reader(self, level: int = 0, channel: int | str | None = None, time: int = 0) -> ZarrReader:
        """Return what reads one volume.

        Raises
        ------
        ImageError
            If there is no such level, channel or time.
        """
        if not 0 <= level < len(self.levels):
            raise ImageError(
                f"No level {level} in '{self.place}'. It has {len(self.levels)} levels, from 0 to "
                f"{len(self.levels) - 1}."
            )
        if not 0 <= time < self.num_times:
            raise ImageError(
                f"No time {time} in '{self.place}'. It has {self.num_times} times, from 0 to "
                f"{self.num_times - 1}."
            )
        return ZarrReader(
            place=self.place,
            level=self.levels[level],
            axes=self.axes,
            channel=self.channel_index(channel),
            time=time,
        )

    def label(self, name: str) -> OmeZarrImage:
        """Open a label image of this image.

        Raises
        ------
        ImageError
            If there is none of this name.
        """
        if name not in self.labels:
            listed = ", ".join(f"'{label}'" for label in self.labels) or "none"
            raise ImageError(f"No label image '{name}' in '{self.place}'. It has {listed}.")
        return _open(self.place.child("labels").child(name))


def open_image(
    location: str | Path, storage_options: Mapping[str, Any] | None = None
) -> OmeZarrImage:
    """Read what an OME-Zarr image of version 0.4 or 0.5 is; no voxels are read.

    Parameters
    ----------
    location : str or Path
        Path or fsspec URL of the image's group. A bioformats2raw root with one image is
        opened as this image.
    storage_options : mapping, optional
        Options for fsspec.

    Raises
    ------
    ImageError
        If there is no such image, or it is damaged, or it is something else.
    """
    return _open(Location.of(location, storage_options))


def _open(location: Location) -> OmeZarrImage:
    """Read what the image at a location is."""
    node = find_image(location)
    place = node.place
    version = metadata.check_version(node.version, zarr_format=node.zarr_format, place=str(place))
    multiscale = metadata.parse_multiscale(node.ome, place=str(place))
    levels = [
        _level(node, number, dataset, multiscale.axes)
        for number, dataset in enumerate(multiscale.datasets)
    ]
    sizes = _lead_sizes(levels, multiscale.axes, str(place))
    omero = node.ome.get("omero")
    omero = omero if isinstance(omero, dict) else None
    names, channel_notes = metadata.channel_names(omero, sizes.get("c", 1))
    labels, label_notes = label_names(place)
    label = node.ome.get("image-label")
    notes = [*multiscale.notes, *channel_notes, *label_notes]
    ordered = sorted(levels, key=lambda level: -level.grid.size)
    if ordered != levels:
        notes.append("The levels are not listed from fine to coarse; they are taken in this order.")
    return OmeZarrImage(
        location=str(place),
        name=multiscale.name.strip("/") or place.stem,
        version=version,
        axes=multiscale.axes,
        channels=names,
        num_times=sizes.get("t", 1),
        levels=tuple(ordered),
        omero=omero,
        labels=labels,
        notes=tuple(notes),
        is_label="image-label" in node.ome,
        place=place,
        time_step=multiscale.time_step,
        time_unit=multiscale.time_unit,
        label_metadata=label if isinstance(label, dict) else None,
    )


def _level(node: Node, number: int, dataset: metadata.Dataset, axes: tuple[str, ...]) -> Level:
    """Read the array of a level and put it into the world."""
    path, place = posixpath.normpath(dataset.path).strip("/"), str(node.place)
    if path in (".", "") or path.startswith(".."):
        raise ImageError(
            f"Level {number} of '{place}' has the path '{dataset.path}'. It must be that of an "
            "array below the image; correct the metadata."
        )
    key = "zarr.json" if node.zarr_format == 3 else ".zarray"
    document = read_document(node.place.child(path), key)
    if document is None or document.get("node_type", "array") != "array":
        raise ImageError(
            f"Level {number} of '{place}' has no array: there is no '{path}/{key}' of one. Copy "
            "the image again, or remove the level from its metadata."
        )
    array = parse_array(document, path=path, place=place)
    if array.ndim != len(axes):
        raise ImageError(
            f"The array '{path}' of '{place}' has {array.ndim} axes, the metadata name "
            f"{len(axes)}: {', '.join(axes)}. Write the image again with matching axes."
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(
            f"The array '{path}' of '{place}' holds {array.dtype}. Voxels must be real numbers."
        )
    order = [axes.index(axis) for axis in AXES if axis in axes]
    if min(array.shape) < 1:
        raise ImageError(f"The array '{path}' of '{place}' is empty: its shape is {array.shape}.")
    return Level(
        path=path,
        grid=Grid(
            shape=tuple(array.shape[i] for i in order),
            spacing=tuple(dataset.scale[i] for i in order),
            origin=tuple(dataset.translation[i] for i in order),
        ),
        shape=tuple(array.shape),
        dtype=array.dtype.newbyteorder("="),
        chunks=tuple(array.chunks[i] for i in order),
        shards=None if array.shards is None else tuple(array.shards[i] for i in order),
        document=json.dumps(document, sort_keys=True),
    )


def _lead_sizes(levels: list[Level], axes: tuple[str, ...], place: str) -> dict[str, int]:
    """Return the numbers of channels and times, checked to be the same in all levels."""
    sizes = {
        axis: [level.shape[i] for level in levels] for i, axis in enumerate(axes) if axis in "ct"
    }
    for axis, lengths in sizes.items():
        if len(set(lengths)) > 1:
            raise ImageError(
                f"The levels of '{place}' have {lengths} voxels along axis '{axis}'. All levels "
                "must have the same number. Write the image again."
            )
    return {axis: lengths[0] for axis, lengths in sizes.items()}
