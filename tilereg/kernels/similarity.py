"""Kernel for the structural similarity of two images."""

from __future__ import annotations

from typing import Any

from numba import njit
from numpy.typing import NDArray

__all__ = ["similarity_sum"]

Array = NDArray[Any]


@njit(cache=True, nogil=True)
def _add_plane(x: Array, y: Array, z: int, sign: float, sums: Array) -> None:
    """Add a plane's values, squares and products to (5, n_y, n_x) sums, or take them off."""
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            a, b = float(x[z, i, j]), float(y[z, i, j])
            sums[0, i, j] += sign * a
            sums[1, i, j] += sign * b
            sums[2, i, j] += sign * a * a
            sums[3, i, j] += sign * b * b
            sums[4, i, j] += sign * a * b


@njit(cache=True, nogil=True)
def _similarity_of_row(row: Array, size: int, count: int, c1: float, c2: float) -> float:
    """Return the sum of the similarity along a (5, n_x) row of sums over z and y."""
    total = 0.0
    a = b = aa = bb = ab = 0.0
    share, sample = 1.0 / count, count / (count - 1.0)
    for j in range(row.shape[1]):
        a, b, aa = a + row[0, j], b + row[1, j], aa + row[2, j]
        bb, ab = bb + row[3, j], ab + row[4, j]
        if j >= size:
            a, b, aa = a - row[0, j - size], b - row[1, j - size], aa - row[2, j - size]
            bb, ab = bb - row[3, j - size], ab - row[4, j - size]
        if j < size - 1:
            continue
        ma, mb = a * share, b * share
        va = sample * (aa * share - ma * ma)
        vb = sample * (bb * share - mb * mb)
        vab = sample * (ab * share - ma * mb)
        top = (2 * ma * mb + c1) * (2 * vab + c2)
        total += top / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return total


@njit(cache=True, nogil=True)
def similarity_sum(
    x: Array,
    y: Array,
    size: tuple[int, int, int],
    constants: tuple[float, float],
    sums: Array,
    row: Array,
) -> float:
    """Return the sum of the structural similarity over all places where the window fits.

    Sums over the window slide along z, y and x: what enters is added and what leaves taken off.

    Parameters
    ----------
    x, y : (n_z, n_y, n_x) ndarrays
    size : three ints
        Voxels of the window, two or more in all.
    constants : two floats
        C1 and C2 of Wang et al. 2004.
    sums : (5, n_y, n_x) ndarray of float64, scratch
    row : (5, n_x) ndarray of float64, scratch
    """
    total = 0.0
    count = size[0] * size[1] * size[2]
    sums[:] = 0.0
    for z in range(x.shape[0]):
        _add_plane(x, y, z, 1.0, sums)
        if z >= size[0]:
            _add_plane(x, y, z - size[0], -1.0, sums)
        if z < size[0] - 1:
            continue
        row[:] = 0.0
        for i in range(x.shape[1]):
            for k in range(5):
                for j in range(x.shape[2]):
                    row[k, j] += sums[k, i, j]
                    if i >= size[1]:
                        row[k, j] -= sums[k, i - size[1], j]
            if i >= size[1] - 1:
                total += _similarity_of_row(row, size[2], count, constants[0], constants[1])
    return total
