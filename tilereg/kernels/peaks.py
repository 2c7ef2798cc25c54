"""Local maxima of a response, independent of where its block starts."""

from __future__ import annotations

import math

import numba
import numpy as np

__all__ = ["baselines", "find_peaks", "quadratic_offsets", "roundness"]


@numba.njit(cache=True, nogil=True)
def _is_peak(score, z, y, x):  # type: ignore[no-untyped-def]
    """Tell whether no neighbour is higher; of equal voxels the first in C order wins."""
    value = score[z, y, x]
    num_z, num_y, num_x = score.shape
    for k in range(max(z - 1, 0), min(z + 2, num_z)):
        for j in range(max(y - 1, 0), min(y + 2, num_y)):
            for i in range(max(x - 1, 0), min(x + 2, num_x)):
                other = score[k, j, i]
                if other > value:
                    return False
                if other == value:
                    earlier = k < z or (k == z and (j < y or (j == y and i < x)))
                    if earlier:
                        return False
    return True


@numba.njit(cache=True, nogil=True)
def find_peaks(score, start, stop, level, out):  # type: ignore[no-untyped-def]
    """Find the local maxima above `level` among 26 neighbours, in C order.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
    start, stop : (3,) int64 ndarrays
        Half-open box of the voxels that may be peaks.
    level : float
    out : (capacity, 3) int64 ndarray
        Gets the indices of the first `capacity` peaks.

    Returns
    -------
    int
        Number of peaks; more than the capacity where `out` was too small.
    """
    count = 0
    for z in range(start[0], stop[0]):
        for y in range(start[1], stop[1]):
            row = score[z, y]
            for x in range(start[2], stop[2]):
                if row[x] > level and _is_peak(score, z, y, x):
                    if count < out.shape[0]:
                        out[count, 0] = z
                        out[count, 1] = y
                        out[count, 2] = x
                    count += 1
    return count


@numba.njit(cache=True, nogil=True)
def quadratic_offsets(score, peaks, out):  # type: ignore[no-untyped-def]
    """Write the vertex of the parabola through each peak and its neighbours, an axis each.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    out : (N, 3) float64 ndarray, voxels
        Offsets from the peak voxel within half a voxel; zero at a face of the block.
    """
    for n in range(peaks.shape[0]):
        z, y, x = peaks[n, 0], peaks[n, 1], peaks[n, 2]
        centre = np.float64(score[z, y, x])
        for axis in range(3):
            dz, dy, dx = int(axis == 0), int(axis == 1), int(axis == 2)
            out[n, axis] = 0.0
            if 0 < peaks[n, axis] < score.shape[axis] - 1:
                before = np.float64(score[z - dz, y - dy, x - dx])
                behind = np.float64(score[z + dz, y + dy, x + dx])
                bend = 2.0 * centre - before - behind
                if bend > 0.0:
                    out[n, axis] = min(0.5, max(-0.5, 0.5 * (behind - before) / bend))


@numba.njit(cache=True, nogil=True)
def baselines(score, peaks, offsets, default, out):  # type: ignore[no-untyped-def]
    """Write the median of the score around each peak.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    offsets : (K, 3) int64 ndarray
        Where to look, from the peak; places outside the block do not count.
    default : float
    out : (N,) float64 ndarray
        The lower median; `default` where less than half of the places lie inside the block.
    """
    values = np.empty(offsets.shape[0])
    for n in range(peaks.shape[0]):
        count = 0
        for k in range(offsets.shape[0]):
            z = peaks[n, 0] + offsets[k, 0]
            y = peaks[n, 1] + offsets[k, 1]
            x = peaks[n, 2] + offsets[k, 2]
            inside = 0 <= z < score.shape[0] and 0 <= y < score.shape[1]
            if inside and 0 <= x < score.shape[2]:
                values[count] = score[z, y, x]
                count += 1
        out[n] = default
        if 2 * count >= offsets.shape[0]:
            out[n] = np.sort(values[:count])[(count - 1) // 2]


@numba.njit(cache=True, nogil=True)
def roundness(score, peaks, width, out):  # type: ignore[no-untyped-def]
    """Write the weakest curvature of each peak as a share of the strongest.

    One for a round blob, its size along an axis counted in widths; near zero on a ridge or an
    edge, along which the score hardly falls.

    Parameters
    ----------
    score : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    width : (3,) float64 ndarray, voxels
        Size of the filter; axes of width zero do not count.
    out : (N,) float64 ndarray
        At most 1; below zero at a saddle. At a face of the block its voxels count twice.
    """
    bend = np.empty((3, 3))
    at = np.empty(3, dtype=np.int64)
    for n in range(peaks.shape[0]):
        centre = np.float64(score[peaks[n, 0], peaks[n, 1], peaks[n, 2]])
        for i in range(3):
            for j in range(i + 1):
                total = 0.0
                if width[i] > 0.0 and width[j] > 0.0:
                    for a in range(-1, 2, 2):
                        for b in range(-1, 2, 2):
                            if i != j or b == a:
                                for axis in range(3):
                                    step = a * (axis == i) + b * (axis == j and i != j)
                                    place = peaks[n, axis] + step
                                    at[axis] = min(max(place, 0), score.shape[axis] - 1)
                                value = np.float64(score[at[0], at[1], at[2]])
                                total += value - centre if i == j else 0.25 * a * b * value
                bend[i, j] = bend[j, i] = total * width[i] * width[j]
        out[n] = _weakest_share(bend, width)


@numba.njit(cache=True, nogil=True)
def _weakest_share(bend, width):  # type: ignore[no-untyped-def]
    """Return the highest eigenvalue of a symmetric matrix as a share of the lowest.

    In closed form, O. K. Smith, Eigenvalues of a symmetric 3 x 3 matrix, CACM 4 (1961) 168.
    Rows of width zero are zero and do not count.
    """
    ndim = (width[0] > 0.0) + (width[1] > 0.0) + (width[2] > 0.0)
    if ndim < 2:
        return 1.0
    trace = bend[0, 0] + bend[1, 1] + bend[2, 2]
    off = bend[1, 0] ** 2 + bend[2, 0] ** 2 + bend[2, 1] ** 2
    if ndim == 2:
        square = bend[0, 0] ** 2 + bend[1, 1] ** 2 + bend[2, 2] ** 2 + 2.0 * off
        root = math.sqrt(max(2.0 * square - trace * trace, 0.0))
        lowest, highest = 0.5 * (trace - root), 0.5 * (trace + root)
    else:
        mean = trace / 3.0
        a, b, c = bend[0, 0] - mean, bend[1, 1] - mean, bend[2, 2] - mean
        size = math.sqrt((a * a + b * b + c * c + 2.0 * off) / 6.0)
        if size <= 1e-12 * abs(mean):
            return 1.0
        half = 0.5 / size**3
        half *= (
            a * (b * c - bend[2, 1] ** 2)
            - bend[1, 0] * (bend[1, 0] * c - bend[2, 1] * bend[2, 0])
            + bend[2, 0] * (bend[1, 0] * bend[2, 1] - b * bend[2, 0])
        )
        angle = math.acos(min(1.0, max(-1.0, half))) / 3.0
        highest = mean + 2.0 * size * math.cos(angle)
        lowest = mean + 2.0 * size * math.cos(angle + 2.0 * math.pi / 3.0)
    return highest / lowest if lowest < 0.0 else 0.0
