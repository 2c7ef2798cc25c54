"""Kernel of farthest-point sampling."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["farthest_points_buckets"]


@njit(cache=True, nogil=True)
def farthest_points_buckets(
    points: NDArray[np.float64],
    ids: NDArray[np.int64],
    edges: NDArray[np.int64],
    first: int,
    squared: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    worst: NDArray[np.float64],
    worst_row: NDArray[np.int64],
    chosen: NDArray[np.int64],
) -> None:
    """Choose points one by one, each the farthest from those chosen before.

    A bucket is a run of rows. It is left alone while the new point is farther from its box
    than any of its points is from the points chosen so far. The distance to the box is
    computed by the same operations as the distances to its points, so rounding never makes
    it the larger one, and the result is that of the plain method to the last bit.

    Parameters
    ----------
    points : (N, D) ndarray
        Sorted so that the rows of a bucket are close together.
    ids : (N,) ndarray
        The rows' numbers in the caller's order; of equally far points the lowest is chosen.
    edges : (B + 1,) ndarray
        First row of each bucket, and N.
    first : int
        Row of the first point.
    squared : (N,) ndarray, changed
        Squared distance to the chosen points; infinity at first, -1 for the chosen.
    low, high : (B, D) ndarray, written
        Box of each bucket.
    worst, worst_row : (B,) ndarray, written
        Largest squared distance in a bucket, and its row.
    chosen : (K,) ndarray, written
        Chosen numbers, in their order.
    """
    num_buckets = edges.size - 1
    ndim = points.shape[1]
    for b in range(num_buckets):
        worst[b] = np.inf
        for d in range(ndim):
            low[b, d] = np.inf
            high[b, d] = -np.inf
        for i in range(edges[b], edges[b + 1]):
            for d in range(ndim):
                low[b, d] = min(low[b, d], points[i, d])
                high[b, d] = max(high[b, d], points[i, d])
    new = first
    for k in range(chosen.size):
        chosen[k] = ids[new]
        squared[new] = -1.0
        farthest = -1
        for b in range(num_buckets):
            nearest = 0.0
            for d in range(ndim):
                x = points[new, d]
                gap = x - min(max(x, low[b, d]), high[b, d])
                nearest += gap * gap
            holds_new = edges[b] <= new < edges[b + 1]
            if nearest < worst[b] or holds_new:
                _update_bucket(
                    points, ids, edges[b], edges[b + 1], new, squared, worst, worst_row, b
                )
            better = farthest < 0 or worst[b] > worst[farthest]
            tie = farthest >= 0 and worst[b] == worst[farthest]
            if better or (tie and ids[worst_row[b]] < ids[worst_row[farthest]]):
                farthest = b
        new = worst_row[farthest]


@njit(cache=True, nogil=True)
def _update_bucket(
    points: NDArray[np.float64],
    ids: NDArray[np.int64],
    start: int,
    stop: int,
    new: int,
    squared: NDArray[np.float64],
    worst: NDArray[np.float64],
    worst_row: NDArray[np.int64],
    b: int,
) -> None:
    """Lower the distances of one bucket's points to the new point, and find the largest."""
    top = start
    for i in range(start, stop):
        total = 0.0
        for d in range(points.shape[1]):
            gap = points[new, d] - points[i, d]
            total += gap * gap
        squared[i] = min(squared[i], total)
        if squared[i] > squared[top] or (squared[i] == squared[top] and ids[i] < ids[top]):
            top = i
    worst[b] = squared[top]
    worst_row[b] = top
