"""Pyramids: which axes are halved, and how blocks of voxels become one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.grid import Grid

__all__ = ["block_mean", "most_common", "plan_levels"]

#: The largest axis of the coarsest level, where nothing else is asked for.
COARSEST = 256


def plan_levels(
    grid: Grid, num_levels: int | None = None
) -> tuple[tuple[Grid, ...], tuple[tuple[int, ...], ...]]:
    """Return the grids of all levels and the factors from each level to the next.

    An axis is halved while its spacing is below sqrt(2) times the finest one: what makes the
    next level's voxels more nearly cubes. An axis of one voxel is never halved and does not
    count. With `num_levels` None, levels are added until no axis is longer than 256 voxels.
    There are fewer levels than asked for where every axis is down to one voxel.

    Examples
    --------
    >>> grids, factors = plan_levels(Grid(shape=(50, 800, 800), spacing=(1.0, 0.25, 0.25)))
    >>> factors
    ((1, 2, 2), (1, 2, 2))
    >>> grids[2].spacing, grids[2].origin
    ((1.0, 1.0, 1.0), (0.0, 0.375, 0.375))
    """
    grids, factors = [grid], []
    while len(grids) < num_levels if num_levels is not None else max(grids[-1].shape) > COARSEST:
        last = grids[-1]
        steps = [s for n, s in zip(last.shape, last.spacing, strict=True) if n > 1]
        if not steps:
            break
        finest = min(steps)
        factor = tuple(
            2 if n > 1 and s < math.sqrt(2) * finest else 1
            for n, s in zip(last.shape, last.spacing, strict=True)
        )
        factors.append(factor)
        grids.append(last.coarsen(factor))
    return tuple(grids), tuple(factors)


def block_mean(block: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """Return the means of blocks of voxels; what does not fill a block is left out.

    Integers are rounded to the nearest, halves to even. The mean is exact for integers and
    is taken in float64 for floats.

    Parameters
    ----------
    block : (D,) ndarray
    factors : (D,) tuple of int
        Voxels of a block an axis.

    Examples
    --------
    >>> block_mean(np.array([[1, 2, 9], [2, 5, 9]], dtype=np.uint8), (2, 2))
    array([[2]], dtype=uint8)
    """
    parts = _parts(block, factors)
    count = len(parts)
    if count == 1:
        return parts[0].copy()
    if block.dtype.kind in "iu" and block.dtype.itemsize == 8:
        return _integer_mean(parts, count)
    # Up to 256 voxels of 16 bits add up below 2**24, where float32 is still exact.
    small = block.dtype.kind in "iu" and block.dtype.itemsize <= 2 and count <= 256
    total = np.zeros(parts[0].shape, dtype=np.float32 if small else np.float64)
    for part in parts:
        np.add(total, part, out=total)
    total /= count
    if block.dtype.kind in "iu":
        np.rint(total, out=total)
    return total.astype(block.dtype)


def _integer_mean(parts: list[NDArray[Any]], count: int) -> NDArray[Any]:
    """Return the rounded mean of 64-bit integers, which no float holds exactly."""
    quotient = np.zeros_like(parts[0])
    rest = np.zeros_like(parts[0])
    for part in parts:
        # Floor division keeps the rest at or above zero for negative numbers too.
        quotient += part // count
        rest += part % count
    quotient += rest // count
    rest %= count
    up = (2 * rest > count) | ((2 * rest == count) & (quotient % 2 == 1))
    quotient[up] += 1
    return quotient


def most_common(block: NDArray[Any], factors: tuple[int, ...]) -> NDArray[Any]:
    """Return the most common voxel of every whole block: for labels, never a new value.

    Of values that are equally common the smallest is taken. No corner of a block counts more than
    another, so labels stay in their places: a fixed corner would move them by half a voxel a level.

    Parameters
    ----------
    block : (D,) ndarray
    factors : (D,) tuple of int
        Voxels of a block an axis.

    Examples
    --------
    >>> most_common(np.array([[7, 7, 3], [0, 7, 3]]), (2, 2))
    array([[7]])
    """
    parts = _parts(block, factors)
    best = parts[0].copy()
    most = np.zeros(best.shape, dtype=np.uint16)
    for part in parts:
        count = np.zeros(best.shape, dtype=np.uint16)
        for other in parts:
            count += part == other
        better = (count > most) | ((count == most) & (part < best))
        best[better] = part[better]
        most[better] = count[better]
    return best


def _parts(block: NDArray[Any], factors: tuple[int, ...]) -> list[NDArray[Any]]:
    """Return views of a block, one for each place in a block of `factors` voxels."""
    shape = tuple(n // f for n, f in zip(block.shape, factors, strict=True))
    whole = block[tuple(slice(0, n * f) for n, f in zip(shape, factors, strict=True))]
    return [
        whole[tuple(slice(i, None, f) for i, f in zip(corner, factors, strict=True))]
        for corner in itertools.product(*(range(f) for f in factors))
    ]
