"""Kernels that draw Gaussian spots and white noise."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["add_gaussians", "add_noise"]

# Rational approximation of the normal distribution's quantiles (P. J. Acklam): numerators and
# denominators for the middle, 95 % of the values, and for the tails; right to 1.2e-9.
_MIDDLE = (
    (-3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2)
    + (1.383577518672690e2, -3.066479806614716e1, 2.506628277459239),
    (-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2)
    + (6.680131188771972e1, -1.328068155288572e1),
)
_TAIL = (
    (-7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838)
    + (-2.549732539343734, 4.374664141464968, 2.938163982698783),
    (7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416),
)
_TAIL_SHARE = 0.02425


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


@njit(cache=True, nogil=True, inline="always")
def _scramble(bits: np.uint64) -> np.uint64:
    """Return 64 bits of which each depends on all (the finaliser of SplitMix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def _normal_quantile(share: float) -> float:
    """Return below which value this share of a normal distribution lies."""
    a, b = _MIDDLE
    c, d = _TAIL
    t = min(share, 1 - share)
    if t < _TAIL_SHARE:
        q = math.sqrt(-2 * math.log(t))
        top = ((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]
        value = top / ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1)
        return value if share < 0.5 else -value
    q = share - 0.5
    r = q * q
    top = (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q
    return top / (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1)


@njit(cache=True, nogil=True)
def add_noise(
    block: NDArray[np.float64], start: NDArray[np.int64], key: np.uint64, deviation: float
) -> None:
    """Add white Gaussian noise whose value at a voxel depends on the key and its index alone.

    Parameters
    ----------
    block : (Z, Y, X) ndarray, changed
    start : (3,) ndarray
        Index of the block's first voxel; indices are below 2^21 and not negative.
    key : uint64
        Names the noise.
    deviation : float
    """
    for z in range(block.shape[0]):
        for y in range(block.shape[1]):
            row = ((start[0] + z) << 42) + ((start[1] + y) << 21) + start[2]
            for x in range(block.shape[2]):
                # SplitMix64 steps by the golden ratio; a second round parts nearby keys.
                bits = key + np.uint64(row + x) * np.uint64(0x9E3779B97F4A7C15)
                bits = _scramble(_scramble(bits) + key)
                share = (float(bits >> np.uint64(12)) + 0.5) * 2.0**-52
                block[z, y, x] += deviation * _normal_quantile(share)
