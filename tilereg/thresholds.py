"""The noise of a response, and the one threshold of an image.

A band-pass response of noise and texture is symmetrical about zero, spots are not: the minima
of the response, those in the dark rings around clear spots left out, tell how many of the
maxima above a level are false.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.detector import Detector, is_round, pedestals_of
from tilereg.grid import Grid
from tilereg.kernels.filters import matched_gain, noise_gain
from tilereg.kernels.peaks import find_peaks
from tilereg.windows import Window

__all__ = ["ResponseStatistics", "find_threshold", "response_statistics", "white_noise"]

# A minimum within this many sigma of a maximum that is this much higher is the maximum's ring:
# around an isolated Gaussian blob the ring has 0.06 of its height in 3D and 0.14 in 2D.
RING_RADIUS = 5.0
RING_SHARE = 0.25
RING_PEAKS = 8
# Normal deviate of the standard deviation per median absolute deviation.
MAD_TO_SIGMA = 1.4826
# Extrema below so many deviations of the noise tell nothing: no threshold is below.
LEAST_EXTREMUM = 3.0
# Peaks below this share of the highest are rounding where an image has no noise at all.
NOISELESS_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class ResponseStatistics:
    """What a sample of an image tells about the response at one size.

    Parameters
    ----------
    maxima : (N,) float64 ndarray
        Heights of the local maxima, ascending; those well below noise may lack.
    minima : (M,) float64 ndarray
        Depths of the local minima outside the rings of clear maxima, ascending; likewise.
    spread : float
        Robust standard deviation of the response, structure included.
    noise : float
        Standard deviation of the response to the image's white noise, at most `spread`.
    num_voxels : int
        Size of the sample.
    """

    maxima: NDArray[np.float64]
    minima: NDArray[np.float64]
    spread: float
    noise: float
    num_voxels: int


def _deviation(values: NDArray[np.float32]) -> float:
    """Return the robust standard deviation of values about zero, from a million of them."""
    flat = values.flat[:: values.size // 2**20 + 1]
    return float(np.median(np.abs(flat))) * MAD_TO_SIGMA if flat.size else 0.0


def _typical(deviations: list[float]) -> float:
    """Return the median over the blocks that are not constant; 0 where all are."""
    above = [d for d in deviations if d > 0]
    return float(np.median(above)) if above else 0.0


def white_noise(
    signals: list[NDArray[np.float32]], valid: Sequence[NDArray[np.bool_] | None]
) -> float:
    """Return the standard deviation of the noise from voxel to voxel.

    From second differences along every axis, in which all that is smooth vanishes [1]_.

    Parameters
    ----------
    signals : list of (Z, Y, X) float32 ndarrays
    valid : sequence of (Z, Y, X) bool ndarray or None
        Which voxels hold data; None for all.

    References
    ----------
    .. [1] J. Immerkaer, Fast noise variance estimation, CVIU 64 (1996) 300-302.
    """
    deviations = []
    for signal, mask in zip(signals, valid, strict=True):
        rough, gain = signal, 1.0
        for axis in range(3):
            if rough.shape[axis] >= 3:
                rough, gain = np.diff(rough, n=2, axis=axis), gain * math.sqrt(6)
        if mask is not None:
            # The middle of the three voxels an axis that a difference is of.
            inner = [slice((n - m) // 2, n - (n - m) // 2)
                     for n, m in zip(mask.shape, rough.shape, strict=True)]  # fmt: skip
            rough = rough[mask[tuple(inner)]]
        deviations.append(_deviation(rough) / gain if gain > 1 else 0.0)
    return _typical(deviations)


def _extrema(
    response: NDArray[np.float32], box: Window, width: NDArray[np.float64], level: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return places (N, 3) of the maxima above a level, and heights above their pedestals."""
    start, stop = np.array(box.start, dtype=np.int64), np.array(box.stop, dtype=np.int64)
    places = np.empty((max(256, box.size // 256), 3), dtype=np.int64)
    count = find_peaks(response, start, stop, level, places)
    if count > len(places):
        places = np.empty((count, 3), dtype=np.int64)
        find_peaks(response, start, stop, level, places)
    places = places[:count]
    heights = response[tuple(places.T)] - pedestals_of(response, places, width, 0.0)
    above = heights > level
    return places[above], heights[above]


def _outside_rings(
    response: NDArray[np.float32], box: Window, width: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the heights of the maxima and the depths of the minima outside their rings."""
    peaks, heights = _extrema(response, box, width, level)
    # Pits stay as they are: those along an edge tell what peaks along it would be worth.
    round_ones = is_round(response, peaks, width)
    peaks, heights = peaks[round_ones], heights[round_ones]
    pits, depths = _extrema(-response, box, width, level)
    if len(heights) == 0 or len(depths) == 0:
        return heights, depths
    # The clear maxima are the ones whose rings matter; most maxima are noise.
    clear = heights > depths.min() / RING_SHARE
    if not clear.any():
        return heights, depths
    scale = np.where(width > 0, width, 1.0)
    _, near = cKDTree(peaks[clear] / scale).query(
        pits / scale, k=min(RING_PEAKS, int(clear.sum())), distance_upper_bound=RING_RADIUS
    )
    around = np.append(heights[clear], 0.0)[near.reshape(len(pits), -1)].max(axis=1)
    return heights, depths[around * RING_SHARE <= depths]


def response_statistics(
    signals: list[NDArray[np.float32]],
    boxes: list[Window],
    sigma: tuple[float, ...],
    grid: Grid,
    white: float,
    valid: Sequence[NDArray[np.bool_] | None],
) -> ResponseStatistics:
    """Measure the response of one size in sample blocks.

    Parameters
    ----------
    signals : list of (Z, Y, X) float32 ndarrays
    boxes : list of Window
        The part of each block, in its own indices, that counts.
    sigma : tuple of float, micrometre
        Size, one number an axis.
    grid : Grid
        Of the whole image.
    white : float
        From `white_noise`.
    valid : sequence of (Z, Y, X) bool ndarray or None
        Which voxels of a block hold data; None for all.
    """
    detector = Detector(sigmas=(sigma,), thresholds=(1.0,), noise=(0.0,))
    width = detector.sigmas_index(grid)[0]
    weights = width**2 / max(matched_gain(width, width**2), 1e-30)
    expected = white * noise_gain(width, weights)
    maxima, minima, spreads = [], [], []
    for signal, box, mask in zip(signals, boxes, valid, strict=True):
        response = detector.response(signal, grid, 0)
        inner = response[box.slices]
        spreads.append(_deviation(inner if mask is None else inner[mask[box.slices]]))
        level = LEAST_EXTREMUM * min(spreads[-1], expected)
        heights, depths = _outside_rings(response, box, width, level)
        maxima.append(heights)
        minima.append(depths)
    spread = _typical(spreads)
    return ResponseStatistics(
        maxima=np.sort(np.concatenate(maxima)),
        minima=np.sort(np.concatenate(minima)),
        spread=spread,
        noise=min(spread, expected),
        num_voxels=sum(box.size for box in boxes),
    )


def expected_maxima(level: float, width: NDArray[np.float64], num_voxels: int) -> float:
    """Return the number of maxima of filtered white noise above a level.

    The expected Euler characteristic of the excursion set, right for levels above 3, but no
    more than the expected number of voxels above the level.

    Parameters
    ----------
    level : float
        In standard deviations of the response.
    width : (3,) ndarray, voxels
        Size of the filter, zero along an axis of one plane.
    num_voxels : int
    """
    ndim = int((width > 0).sum())
    polynomial = {0: 0.0, 1: 1.0, 2: level, 3: level**2 - 1}[ndim]
    # Variance of the slope of a Laplacian of Gaussian of noise, in units of 1 / sigma^2.
    slope = (ndim + 4) / (2 * max(ndim, 1))
    density = slope ** (ndim / 2) * (2 * math.pi) ** (-(ndim + 1) / 2)
    maxima = density * polynomial * math.exp(-0.5 * level**2) / float(width[width > 0].prod())
    return num_voxels * min(float(maxima), 0.5 * math.erfc(level / math.sqrt(2)))


def noise_level(width: NDArray[np.float64], grid: Grid, num_false: float) -> float:
    """Return the level in standard deviations above which `num_false` maxima are noise.

    Parameters
    ----------
    width : (3,) ndarray, voxels
        Size of the filter, zero along an axis of one plane.
    grid : Grid
        Of the whole image.
    num_false : float
        Expected number of false maxima in the whole image.
    """
    low, high = 3.0, 12.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if expected_maxima(middle, width, grid.size) > num_false:
            low = middle
        else:
            high = middle
    return high


def find_threshold(
    statistics: ResponseStatistics,
    width: NDArray[np.float64],
    grid: Grid,
    false_share: float,
) -> float:
    """Return the lowest response that is a spot.

    The lowest level above which minima are no more than `false_share` of the maxima. It is
    not below what white noise reaches, nor, unless the excess of maxima is significant, below
    what Gaussian noise of the whole spread reaches.

    Parameters
    ----------
    statistics : ResponseStatistics
    width : (3,) ndarray, voxels
        Size of the filter.
    grid : Grid
        Of the whole image.
    false_share : float
        0 to 1.

    Returns
    -------
    float
        Above zero; above every maximum where an image has no spots.
    """
    maxima, minima = statistics.maxima, statistics.minima
    top = float(maxima[-1]) if len(maxima) else 0.0
    if statistics.spread == 0.0:
        return NOISELESS_SHARE * top if top > 0 else 1.0
    num_maxima = len(maxima) - np.arange(len(maxima))
    num_minima = len(minima) - np.searchsorted(minima, maxima)
    excess = num_maxima - num_minima > 3 * np.sqrt(num_maxima + num_minima + 1.0)
    share = grid.size / max(1, statistics.num_voxels)
    few, many = noise_level(width, grid, 1.0), LEAST_EXTREMUM
    # White noise alone may add a fifth of the false spots that the share allows.
    if len(maxima):
        found = int(np.searchsorted(-maxima[::-1], -few * statistics.noise))
        many = noise_level(width, grid, max(1.0, 0.2 * false_share * share * found))
    floor = np.where(excess, many * statistics.noise, few * statistics.spread)
    good = (num_minima <= false_share * num_maxima) & (maxima >= floor)
    if good.any():
        # A little above the next lower maximum: rounding cannot decide, and in a gap what the
        # sample happens to lack can still be found.
        first = int(np.flatnonzero(good)[0])
        below = float(maxima[first - 1]) if first else LEAST_EXTREMUM * statistics.noise
        return max(below + 0.1 * (float(maxima[first]) - below), float(floor[first]))
    deepest = float(minima[-1]) if len(minima) else 0.0
    return max(few * statistics.spread, deepest, 1.001 * top)
