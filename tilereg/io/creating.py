"""A new OME-Zarr image: its arguments checked, its arrays created, nothing in them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike

from tilereg.errors import InputError, OutputError
from tilereg.grid import Grid
from tilereg.io import layout
from tilereg.io.nodes import read_node
from tilereg.io.pyramid import plan_levels
from tilereg.io.removing import remove_store
from tilereg.io.stores import Location, outputs
from tilereg.io.writing import ImageWriter, write_group

__all__ = ["begin_image", "create_image", "plan_image"]


def create_image(
    location: str | Path,
    *,
    grid: Grid,
    dtype: DTypeLike,
    axes: Sequence[str] | None = None,
    channels: Sequence[str] = (),
    num_times: int = 1,
    version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    compression: str = "zstd",
    fill_value: float = 0,
    name: str | None = None,
    omero: Mapping[str, Any] | None = None,
    omero_channels: Sequence[int] | None = None,
    is_label: bool = False,
    label_metadata: Mapping[str, Any] | None = None,
    time_step: float = 1.0,
    time_unit: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> ImageWriter:
    """Create the arrays of an image, empty, and return what writes into them.

    Parameters
    ----------
    location : str or Path
        Path or fsspec URL of the new group.
    grid : Grid
        Where the voxels of level 0 are, in micrometre.
    dtype : dtype
        Of a voxel: a real number of at most 64 bits; an integer for labels.
    axes : sequence of str, optional
        Of the arrays: any of t and c, then those of the grid. Default: those needed.
    channels : sequence of str, optional
        Names. Default: no channel axis; a channel axis that `axes` asks for gets one, "0".
    num_times : int
        Number of times. Default 1.
    version : {"0.5", "0.4"}
        Of OME-Zarr: zarr format 3 or 2.
    chunks, shards : sequence of int, optional
        Of the spatial axes, clipped to the shape. Default: chunks of 64 x 128 x 128, or
        512 x 512 in one plane, and no shards. Shards need 0.5 and are multiples of chunks.
    levels : int, optional
        Number of levels. Default: until no axis is longer than 256 voxels.
    compression : {"zstd", "none", "gzip", "blosc-lz4", "blosc-zstd"}
        Of chunks.
    fill_value : float
        Of voxels that are not stored. Default 0.
    name : str, optional
        In the metadata. Default: from the location.
    omero : mapping, optional
        Display settings to carry over from another image.
    omero_channels : sequence of int, optional
        The number in `omero` of each channel. Default: its own number where there are as many,
        else that of the same name.
    is_label : bool
        Whether the voxels are labels. Default no.
    label_metadata : mapping, optional
        Colours and properties of labels to carry over; only labels have any.
    time_step : float
        Between two times, in `time_unit`. Default 1.
    time_unit : str, optional
        Such as "second".
    overwrite : bool
        Whether one image at the location is removed first. Default no.
    resume : bool
        Whether an unfinished image of exactly these arrays is written on. Default no.
    storage_options : mapping, optional
        Options for fsspec.

    Raises
    ------
    InputError
        If an argument breaks a rule.
    OutputError
        If something is at the location already, or it cannot be written.
    """
    writer = plan_image(
        location,
        grid=grid,
        dtype=dtype,
        axes=axes,
        channels=channels,
        num_times=num_times,
        version=version,
        chunks=chunks,
        shards=shards,
        levels=levels,
        compression=compression,
        fill_value=fill_value,
        name=name,
        omero=omero,
        omero_channels=omero_channels,
        is_label=is_label,
        label_metadata=label_metadata,
        time_step=time_step,
        time_unit=time_unit,
        storage_options=storage_options,
    )
    begin_image(writer, overwrite=overwrite, resume=resume)
    return writer


def plan_image(
    location: str | Path,
    *,
    grid: Grid,
    dtype: DTypeLike,
    axes: Sequence[str] | None = None,
    channels: Sequence[str] = (),
    num_times: int = 1,
    version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    compression: str = "zstd",
    fill_value: float = 0,
    name: str | None = None,
    omero: Mapping[str, Any] | None = None,
    omero_channels: Sequence[int] | None = None,
    is_label: bool = False,
    label_metadata: Mapping[str, Any] | None = None,
    time_step: float = 1.0,
    time_unit: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ImageWriter:
    """Check the arguments of `create_image` and return its writer; nothing is written yet.

    Raises
    ------
    InputError
        If an argument breaks a rule.
    """
    place = Location.of(location, storage_options)
    kind = layout.check_dtype(dtype, is_label=is_label)
    _check_choices(version, compression, shards, num_times, levels)
    layout.check_fill_value(fill_value, kind)
    names = tuple(str(channel) for channel in channels)
    all_axes = layout.check_axes(axes, grid, len(names), num_times)
    names = names or ("0",)
    _check_carried(omero_channels, len(names), time_step)
    lead = tuple({"t": num_times, "c": len(names)}[axis] for axis in all_axes if axis in "tc")
    grids, factors = plan_levels(grid, levels)
    style = layout.ArrayStyle(
        axes=all_axes,
        lead_shape=lead,
        dtype=kind,
        chunks=None if chunks is None else tuple(chunks),
        shards=None if shards is None else tuple(shards),
        compression=compression,
        fill_value=fill_value,
        zarr_format=3 if version == "0.5" else 2,
    )
    return ImageWriter(
        place=place,
        name=name or place.stem,
        version="0.5" if version == "0.5" else "0.4",
        axes=all_axes,
        channels=names,
        num_times=num_times,
        levels=tuple(layout.plan_level(str(i), level, style) for i, level in enumerate(grids)),
        factors=factors,
        omero=omero,
        is_label=is_label,
        omero_channels=None if omero_channels is None else tuple(omero_channels),
        time_step=float(time_step),
        time_unit=time_unit,
        label_metadata=label_metadata if is_label else None,
    )


def _check_choices(
    version: str,
    compression: str,
    shards: Sequence[int] | None,
    num_times: int,
    levels: int | None,
) -> None:
    """Check the arguments that stand alone."""
    if version not in ("0.4", "0.5"):
        raise InputError(f"Invalid version '{version}'. Images are written as 0.4 or 0.5.")
    if compression not in layout.COMPRESSIONS:
        raise InputError(
            f"Invalid compression '{compression}'. It must be one of "
            f"{', '.join(layout.COMPRESSIONS)}."
        )
    if shards is not None and version == "0.4":
        raise InputError(f"Shards {tuple(shards)} need version 0.5; 0.4 has none. Use 0.5.")
    if num_times < 1 or (levels is not None and levels < 1):
        raise InputError(
            f"Invalid number of times {num_times} or levels {levels}. At least one is needed."
        )


def _check_carried(sources: Sequence[int] | None, num_channels: int, time_step: float) -> None:
    """Check what is carried over from another image."""
    if sources is not None and (len(sources) != num_channels or min(sources, default=0) < 0):
        raise InputError(
            f"Invalid omero_channels {tuple(sources)}. One number from 0 on for each of the "
            f"{num_channels} channels is needed."
        )
    if not 0 < time_step < math.inf:
        raise InputError(f"Invalid time_step {time_step}. It must be > 0 and finite.")


def begin_image(writer: ImageWriter, *, overwrite: bool = False, resume: bool = False) -> None:
    """Write the groups and array documents of a planned image, or check those that are there.

    Raises
    ------
    InputError
        If a label image would be of another version than its image.
    OutputError
        If something is at the location already, or it cannot be written.
    """
    place = writer.place
    if writer.is_label and place.parent.name == "labels":
        image = read_node(place.parent.parent)
        if image is not None and image.zarr_format != writer.zarr_format:
            raise InputError(
                f"Invalid version {writer.version} of the label image '{place}'. It must be that "
                "of the image it belongs to."
            )
    with outputs("write", f"'{place}'"):
        if overwrite:
            remove_store(place.url, place.options)
        elif place.exists():
            if not resume:
                raise OutputError(
                    f"'{place}' exists already. Choose another output, or use overwrite "
                    "(--overwrite)."
                )
            _check_begun(writer)
            return
        write_group(place, writer.version, {})
        for level in writer.levels:
            place.child(level.path).write_text(writer.array_key, level.document)


def _check_begun(writer: ImageWriter) -> None:
    """Check that the arrays on disk are those of this image."""
    for level in writer.levels:
        text = writer.place.child(level.path).read_text(writer.array_key)
        if text is None or json.loads(text) != json.loads(level.document):
            raise OutputError(
                f"Level '{level.path}' of '{writer.place}' was begun with other settings, so it "
                "cannot be continued. Choose another output, or use overwrite (--overwrite)."
            )
