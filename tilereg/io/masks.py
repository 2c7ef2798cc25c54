"""Masks: which points lie inside of an image that is zero outside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import ImageError, InputError
from tilereg.io.reading import OmeZarrImage
from tilereg.windows import Window

__all__ = ["is_inside"]

Floats = NDArray[np.float64]


def is_inside(mask: OmeZarrImage, points: Floats, *, time: int = 0) -> NDArray[np.bool_]:
    """Tell which points lie in voxels of a mask that are not zero.

    Only chunks that hold points are read, one at a time, of the finest level. A point belongs to
    the voxel whose centre is nearest; outside of the image, and where it is NaN, there is no mask.

    Parameters
    ----------
    mask : OmeZarrImage
        An image or a label image of one channel, on any grid of the points' world.
    points : (N, D) ndarray, micrometre
    time : int
        Time point of a mask that has several.

    Returns
    -------
    (N,) bool ndarray

    Raises
    ------
    ImageError
        If the mask has several channels, or cannot be read.
    InputError
        If it has other axes than the points.
    """
    if len(mask.channels) > 1:
        raise ImageError(
            f"The mask '{mask.location}' has {len(mask.channels)} channels. A mask has one: give a "
            "label image, or an image of one channel."
        )
    reader = mask.reader(time=time if mask.num_times > 1 else 0)
    grid = reader.grid
    if grid.ndim != points.shape[1]:
        raise InputError(
            f"The mask '{mask.location}' has {grid.ndim} spatial axes, the spots have "
            f"{points.shape[1]}. Give one of as many axes."
        )
    inside = grid.contains(points)
    rows = np.flatnonzero(inside)
    index = np.floor(grid.to_index(points[rows]) + 0.5).astype(np.int64)
    # Half-open borders: rounding may bring a point on the last one beyond it.
    index = np.clip(index, 0, np.asarray(grid.shape) - 1)
    counts = [-(-n // c) for n, c in zip(grid.shape, reader.chunks, strict=True)]
    chunk = np.ravel_multi_index(tuple((index // np.asarray(reader.chunks)).T), counts)
    order = np.argsort(chunk, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1):
        if len(part):
            start = index[part[0]] // np.asarray(reader.chunks) * np.asarray(reader.chunks)
            stop = start + np.asarray(reader.chunks)
            window = Window(tuple(start.tolist()), tuple(stop.tolist())).clip(grid.shape)
            values = reader.read(window)[tuple((index[part] - start).T)]
            inside[rows[part]] = (values != 0) & (values == values)
    return inside
