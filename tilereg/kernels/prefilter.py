"""From samples to the coefficients of the cubic B-spline that passes through them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["PREFILTER_RADIUS", "filter_axis", "mirrored", "prefilter_weights"]

Array = NDArray[Any]

# The filter's pole is sqrt(3) - 2 = -0.268; what lies further away weighs below 2e-7 in all.
PREFILTER_RADIUS = 12


def prefilter_weights() -> NDArray[np.float64]:
    """Return one half of the filter that turns samples into cubic B-spline coefficients.

    The inverse of (1, 4, 1) / 6 is ``sqrt(3) * pole**abs(k)``, cut off at `PREFILTER_RADIUS` and
    scaled to sum to 1. A filter of fixed length gives every block the same coefficients, to the
    last bit, which the usual recursion does not.

    Returns
    -------
    (PREFILTER_RADIUS + 1,) ndarray
        The weight of the centre first.
    """
    half = (math.sqrt(3.0) - 2.0) ** np.arange(PREFILTER_RADIUS + 1)
    return np.asarray(half / (2 * half.sum() - half[0]))


@njit(cache=True, nogil=True)
def filter_axis(
    source: Array, axis: int, rows: Array, weights: Array, line: Array, out: Array
) -> None:
    """Filter along one axis with a symmetric filter.

    Parameters
    ----------
    source : (s_z, s_y, s_x) ndarray of float32 or float64
    axis : int
    rows : (n + 2 * radius,) ndarray of int64
        Index in `source` of what lies under the filter, mirrored where the volume ends.
    weights : (radius + 1,) ndarray of the type of `source`
    line : (n_x + 2 * radius,) ndarray of the type of `source`, scratch for axis 2
    out : ndarray of the type of `source`
        n along `axis`, the shape of `source` along the others.
    """
    radius = weights.shape[0] - 1
    num_z, num_y, num_x = out.shape
    for z in range(num_z):
        for y in range(num_y):
            target = out[z, y]
            if axis == 2:
                for x in range(line.shape[0]):
                    line[x] = source[z, y, rows[x]]
            for k in range(radius + 1):
                w = weights[k]
                if axis == 0:
                    a, b = source[rows[z + radius - k], y], source[rows[z + radius + k], y]
                elif axis == 1:
                    a, b = source[z, rows[y + radius - k]], source[z, rows[y + radius + k]]
                else:
                    a, b = line[radius - k : radius - k + num_x], line[radius + k :]
                if k == 0:
                    for x in range(num_x):
                        target[x] = w * a[x]
                else:
                    for x in range(num_x):
                        target[x] += w * (a[x] + b[x])


def mirrored(first: int, stop: int, length: int) -> NDArray[np.int64]:
    """Return the indices first..stop-1 folded into an axis; its outermost voxels come once.

    Parameters
    ----------
    first, stop : int
        May lie outside of the axis.
    length : int
        Number of voxels of the axis.
    """
    if length == 1:
        return np.zeros(stop - first, dtype=np.int64)
    index = np.abs(np.arange(first, stop)) % (2 * length - 2)
    return np.where(index < length, index, 2 * length - 2 - index)
