"""Separable Gaussian smoothing and the discrete Laplacian, in float32.

Every output voxel is summed in the same order wherever its block starts, and no step may be
reordered by the compiler, so that blocks of any size agree to the last bit.
Arrays have three axes; a 2D image is one plane. Beyond its faces a block is mirrored, the
outermost voxel included: repeating that voxel instead would multiply its noise.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian_taps", "laplacian", "matched_gain", "noise_gain", "smooth"]

TRUNCATE = 4.0


def gaussian_taps(sigma: float) -> NDArray[np.float32]:
    """Return one half of a sampled Gaussian that sums to 1, its centre first.

    Parameters
    ----------
    sigma : float, voxels
        Zero gives the single tap 1. The kernel ends at 4 sigma.
    """
    if sigma <= 0:
        return np.ones(1, dtype=np.float32)
    radius = max(1, math.ceil(TRUNCATE * sigma))
    half = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    half /= 2 * half.sum() - half[0]
    return np.asarray(half, dtype=np.float32)


def matched_gain(sigma: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    """Return the response at the centre of a Gaussian blob of height 1 and the filter's size.

    Parameters
    ----------
    sigma : (D,) ndarray, voxels
        Size of the filter and the blob; zero on an axis of one plane.
    coefficients : (D,) ndarray
        Weights of the second differences, as in `laplacian`.
    """
    centre = np.ones(len(sigma))
    beside = np.ones(len(sigma))
    for axis, width in enumerate(sigma):
        if width > 0:
            taps = gaussian_taps(float(width)).astype(np.float64)
            both = np.concatenate([taps[:0:-1], taps])
            place = np.arange(-len(taps) + 1, len(taps))
            centre[axis] = both @ np.exp(-0.5 * (place / width) ** 2)
            beside[axis] = both @ np.exp(-0.5 * ((place - 1) / width) ** 2)
    bend = coefficients * 2 * (centre - beside) / centre
    return float(bend.sum() * centre.prod())


def noise_gain(sigma: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    """Return the standard deviation of the response to white noise of unit deviation.

    Parameters
    ----------
    sigma, coefficients : (D,) ndarrays
        As in `matched_gain`.
    """
    even, mixed, bent = np.ones(len(sigma)), np.zeros(len(sigma)), np.zeros(len(sigma))
    for axis, width in enumerate(sigma):
        if width > 0:
            taps = gaussian_taps(float(width)).astype(np.float64)
            both = np.pad(np.concatenate([taps[:0:-1], taps]), 2)
            bend = 2 * both - np.roll(both, 1) - np.roll(both, -1)
            even[axis], mixed[axis], bent[axis] = both @ both, both @ bend, bend @ bend
    # The kernel is a sum over axes; its square sums the products of every two of them.
    slopes = coefficients * mixed / even
    own = coefficients**2 * bent / even
    total = own.sum() + slopes.sum() ** 2 - (slopes**2).sum()
    return float(np.sqrt(total * even.prod()))


@numba.njit(cache=True, nogil=True)
def _mirror(index, size):  # type: ignore[no-untyped-def]
    """Return the index inside an axis of `size` voxels that an index is mirrored to."""
    index = index % (2 * size)
    return index if index < size else 2 * size - 1 - index


@numba.njit(cache=True, nogil=True)
def _sum_rows(planes, index, row, taps, out):  # type: ignore[no-untyped-def]
    """Smooth row `row` across planes around `index`; planes (Z, Y, X), out (X,)."""
    size, depth = out.shape[0], planes.shape[0]
    centre = planes[index, row]
    weight = taps[0]
    for x in range(size):
        out[x] = weight * centre[x]
    for k in range(1, taps.shape[0]):
        before = planes[_mirror(index - k, depth), row]
        behind = planes[_mirror(index + k, depth), row]
        weight = taps[k]
        for x in range(size):
            out[x] += weight * (before[x] + behind[x])


@numba.njit(cache=True, nogil=True)
def _smooth_row(row, taps, padded, out):  # type: ignore[no-untyped-def]
    """Smooth one row along itself; row and out (X,), padded (X + 2 radius,) scratch."""
    radius = taps.shape[0] - 1
    size = row.shape[0]
    for x in range(radius):
        padded[x] = row[_mirror(x - radius, size)]
        padded[radius + size + x] = row[_mirror(size + x, size)]
    for x in range(size):
        padded[radius + x] = row[x]
    weight = taps[0]
    for x in range(size):
        out[x] = weight * row[x]
    for k in range(1, radius + 1):
        weight = taps[k]
        before = padded[radius - k : radius - k + size]
        behind = padded[radius + k : radius + k + size]
        for x in range(size):
            out[x] += weight * (before[x] + behind[x])


@numba.njit(cache=True, nogil=True)
def smooth(block, taps_z, taps_y, taps_x, planes, padded, out):  # type: ignore[no-untyped-def]
    """Smooth a block with a separable Gaussian, plane by plane.

    Parameters
    ----------
    block : (Z, Y, X) float32 ndarray
    taps_z, taps_y, taps_x : float32 ndarrays
        Half kernels of `gaussian_taps`.
    planes : (2, Y, X) float32 ndarray
        Scratch.
    padded : (X + 2 * (len(taps_x) - 1),) float32 ndarray
        Scratch.
    out : (Z, Y, X) float32 ndarray
        The result; may not be `block`.
    """
    first = planes[:1]
    for z in range(block.shape[0]):
        for y in range(block.shape[1]):
            _sum_rows(block, z, y, taps_z, planes[0, y])
        # A plane seen as rows: the y axis takes the place of z.
        rows = first.reshape((block.shape[1], 1, block.shape[2]))
        for y in range(block.shape[1]):
            _sum_rows(rows, y, 0, taps_y, planes[1, y])
            _smooth_row(planes[1, y], taps_x, padded, out[z, y])


@numba.njit(cache=True, nogil=True)
def laplacian(block, coefficients, out):  # type: ignore[no-untyped-def]
    """Write the negative Laplacian: positive at the centre of a bright blob.

    Parameters
    ----------
    block : (Z, Y, X) float32 ndarray
    coefficients : (3,) float32 ndarray
        Weight of the second difference along each axis.
    out : (Z, Y, X) float32 ndarray
        The result; may not be `block`.
    """
    num_z, num_y, num_x = block.shape
    weight_z, weight_y, weight_x = coefficients[0], coefficients[1], coefficients[2]
    two = np.float32(2)
    for z in range(num_z):
        below, above = max(z - 1, 0), min(z + 1, num_z - 1)
        for y in range(num_y):
            row = block[z, y]
            row_below, row_above = block[below, y], block[above, y]
            row_before, row_behind = block[z, max(y - 1, 0)], block[z, min(y + 1, num_y - 1)]
            target = out[z, y]
            for x in range(num_x):
                bend = weight_z * (two * row[x] - (row_below[x] + row_above[x]))
                target[x] = bend + weight_y * (two * row[x] - (row_before[x] + row_behind[x]))
            for x in range(1, num_x - 1):
                target[x] += weight_x * (two * row[x] - (row[x - 1] + row[x + 1]))
            if num_x > 1:
                target[0] += weight_x * (two * row[0] - (row[0] + row[1]))
                end = num_x - 1
                target[end] += weight_x * (two * row[end] - (row[end - 1] + row[end]))
