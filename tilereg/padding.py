"""Voxels that hold no data: what a stitcher, a rotation or a crop has padded an image with.

Where an image ends inside its own array its edge is a step, and on a step a band-pass filter
makes peaks without end. So padding is given the value that the image has next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["REACH", "Padding", "find_padding", "padded"]

REACH = 4
"""Voxels around a voxel that decide whether it is padding."""

_HALF = REACH // 2  # half a side of the square that must be empty

# What an image has next to its padding: in these voxels, as interpolation makes a soft rim.
_RIM = (1, 3)
# Padding must be solid in so many voxels of a sample, and leave so many to the image.
_LEAST_SOLID = 1000
_LEAST_RIM = 100
# Height of the step at its edge in standard deviations of the image there; a lower one does no
# harm, and spots on a background of nothing rise from it in a slope.
_LEAST_STEP = 2.0


@dataclass(frozen=True)
class Padding:
    """What an image is padded with.

    Parameters
    ----------
    value : float
        Of voxels that hold no data, where they fill a square of five by five voxels.
    level : float
        A typical value of the image next to them, which takes their place.
    """

    value: float
    level: float


def find_padding(blocks: Sequence[NDArray[Any]]) -> Padding | None:
    """Tell what an image is padded with, from blocks of it; None where it is not.

    Padding has the lowest value of the image, and what is next to it varies, but stands a
    step above it.

    Parameters
    ----------
    blocks : sequence of ndarray
    """
    finite = [float(b.min()) for b in blocks if b.size and np.isfinite(b.min())]
    if not finite:
        return None
    value = min(finite)
    rims, count = [], 0
    for block in blocks:
        solid = padded(block, value)
        if solid is None:
            continue
        count += int(solid.sum())
        near = _grow(solid, _RIM[0])
        rims.append(block[_grow(near, _RIM[1] - _RIM[0]) & ~near])
    rim = np.concatenate(rims) if rims else np.empty(0)
    if count < _LEAST_SOLID or rim.size < _LEAST_RIM:
        return None
    level = float(np.median(rim))
    deviation = 1.4826 * float(np.median(np.abs(rim - level)))
    is_step = 0 < _LEAST_STEP * deviation < level - value
    return Padding(value, level) if is_step else None


def padded(block: NDArray[Any], value: float) -> NDArray[np.bool_] | None:
    """Return which voxels of a block are padding; None where none is.

    The voxels of a square of five by five, along any two axes, that has nothing but `value`;
    what lies outside of the block counts as such. Axes of one voxel do not count.

    Parameters
    ----------
    block : ndarray
    value : float
    """
    empty = np.asarray(block == value)
    if not empty.any():
        return None
    filled = ~empty
    out = np.zeros_like(empty)
    long_axes = [axis for axis, n in enumerate(block.shape) if n > 1]
    for axes in combinations(long_axes, min(2, len(long_axes))):
        core = ~_grow(filled, _HALF, axes)
        if core.any():
            out |= _grow(core, _HALF, axes)
    out &= empty
    return out if out.any() else None


def _grow(
    mask: NDArray[np.bool_], steps: int, axes: Sequence[int] | None = None
) -> NDArray[np.bool_]:
    """Return a mask grown by so many voxels to each side along axes, all by default."""
    out = mask
    for axis in range(mask.ndim) if axes is None else axes:
        for _ in range(steps):
            before = np.moveaxis(out, axis, 0)
            out = out.copy()
            grown = np.moveaxis(out, axis, 0)
            grown[1:] |= before[:-1]
            grown[:-1] |= before[1:]
    return out
