"""Sub-voxel places of peaks: which ones are fitted together, and in what window."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.kernels.blobs import MAX_NEIGHBOURS, fit_blobs

__all__ = ["fit_peaks", "neighbour_reach"]

# Half size of a fit's window and distance to which neighbours are fitted along, in sigma.
WINDOW = 3.0
NEIGHBOURHOOD = 5.0


def fit_peaks(
    signal: NDArray[np.float32],
    peaks: NDArray[np.int64],
    starts: NDArray[np.float64],
    heights: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    widest: NDArray[np.float64],
    num_core: int,
) -> NDArray[np.float64]:
    """Fit a blob at each of the first `num_core` peaks, with the others as neighbours.

    Parameters
    ----------
    signal : (Z, Y, X) float32 ndarray
    peaks : (N, 3) int64 ndarray
    starts : (N, 3) float64 ndarray, voxels
        Offsets of the centres from the peak voxels.
    heights : (N,) float64 ndarray
        Expected heights.
    sigmas : (N, 3) float64 ndarray, voxels
        Sizes; zero along an axis of one plane.
    widest : (3,) ndarray, voxels
        The largest size of the detector, by which distances of neighbours are measured:
        the largest in this block would depend on the block.
    num_core : int

    Returns
    -------
    (num_core, 8) ndarray
        The columns of `fit_blobs`.
    """
    out = np.empty((num_core, 8))
    neighbours = _neighbours(peaks, starts, widest, num_core)
    # Along an axis of one plane this width makes volumes those of two axes: pi^1.5 s = pi.
    widths = np.where(sigmas > 0, sigmas, 1 / math.sqrt(math.pi))
    halves = _half_window(sigmas)
    fit_blobs(
        signal, peaks, starts, heights, widths, halves, neighbours, out, np.empty(num_core, bool)
    )
    return out


def neighbour_reach(width: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the distance in whole voxels to which peaks count as neighbours, an axis each."""
    reach = np.where(width > 0, np.ceil(NEIGHBOURHOOD * width) + 1, 0)
    return np.asarray(reach, dtype=np.int64)


def _half_window(width: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the half size of a fit's window in voxels."""
    half = np.where(width > 0, np.maximum(np.ceil(WINDOW * width), 2), 0)
    return np.asarray(half, dtype=np.int64)


def _neighbours(
    peaks: NDArray[np.int64],
    starts: NDArray[np.float64],
    widest: NDArray[np.float64],
    num_core: int,
) -> NDArray[np.int64]:
    """Return the (num_core, MAX_NEIGHBOURS) rows of the nearest other peaks, -1 for none."""
    out = np.full((num_core, MAX_NEIGHBOURS), -1, dtype=np.int64)
    if len(peaks) < 2:
        return out
    width = np.where(widest > 0, widest, 1.0)
    tree = cKDTree((peaks + starts) / width)
    pairs = tree.query_pairs(NEIGHBOURHOOD * (1 + 1e-9), output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    first, second = pairs[pairs[:, 0] < num_core].T
    # Whole voxels first: a difference that is exact and the same in every block.
    gap = (peaks[second] - peaks[first]) + (starts[second] - starts[first])
    distance = np.sqrt(((gap / width) ** 2).sum(axis=1))
    step = (peaks[second] - peaks[first]).T
    order = np.lexsort((step[2], step[1], step[0], distance, first))
    order = order[distance[order] <= NEIGHBOURHOOD]
    first, second = first[order], second[order]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    near = rank < MAX_NEIGHBOURS
    out[first[near], rank[near]] = second[near]
    return out
