"""Kernel that draws Gaussian spots."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["add_gaussians"]


@njit(cache=True, nogil=True)
def add_gaussians(
    block: NDArray[np.float64],
    start: NDArray[np.int64],
    positions_index: NDArray[np.float64],
    amplitudes: NDArray[np.float64],
    sigma_voxels: NDArray[np.float64],
    cut: float,
    profiles: NDArray[np.float64],
) -> None:
    """Add spots to a block, so that a voxel gets the same value in every block that holds it.

    A spot's profile along an axis is always computed from its own first voxel, whatever the
    block shows of it, and spots are added in their order.

    Parameters
    ----------
    block : (Z, Y, X) ndarray, changed
    start : (3,) ndarray
        Index of the block's first voxel.
    positions_index : (N, 3) ndarray, voxels
    amplitudes : (N,) ndarray
        Height of each spot's peak.
    sigma_voxels : (3,) ndarray
    cut : float
        Sigmas from the centre at which a spot ends along an axis.
    profiles : (3, L) ndarray, scratch
        L is at least twice the cut in voxels, and one more.
    """
    first = np.empty(3, np.int64)
    last = np.empty(3, np.int64)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for n in range(amplitudes.size):
        seen = True
        for d in range(3):
            reach = cut * sigma_voxels[d]
            first[d] = math.ceil(positions_index[n, d] - reach)
            last[d] = math.floor(positions_index[n, d] + reach)
            low[d] = max(first[d], start[d])
            high[d] = min(last[d] + 1, start[d] + block.shape[d])
            seen = seen and low[d] < high[d]
        if not seen:
            continue
        for d in range(3):
            for i in range(last[d] + 1 - first[d]):
                t = (first[d] + i - positions_index[n, d]) / sigma_voxels[d]
                profiles[d, i] = math.exp(-0.5 * t * t)
        for z in range(low[0], high[0]):
            along_z = amplitudes[n] * profiles[0, z - first[0]]
            for y in range(low[1], high[1]):
                along_y = along_z * profiles[1, y - first[1]]
                for x in range(low[2], high[2]):
                    value = along_y * profiles[2, x - first[2]]
                    block[z - start[0], y - start[1], x - start[2]] += value
