"""Farthest-point sampling: a few points that cover a cloud evenly."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.kernels.sampling import farthest_points_buckets
from tilereg.points import check_points

__all__ = ["farthest_points"]

_BUCKET = 64  # points; between 32 and 256 the time hardly changes


def farthest_points(points: ArrayLike, count: int, *, start: int = 0) -> NDArray[np.int64]:
    """Choose points that are far from one another.

    Begins with `start`; each further point is the one farthest from those chosen before, of
    equally far ones the first. So the first k of a longer sample are the sample of k.

    Parameters
    ----------
    points : (N, D) ndarray, micrometre
    count : int
        Number K of points, from 1 to N.
    start : int
        Row of the first point. Default 0.

    Returns
    -------
    (K,) ndarray of int
        Rows, in the order of choice.

    Raises
    ------
    InputError
        If `count` or `start` is out of range, or a point is not finite.

    Notes
    -----
    Exact, and deterministic. Every point of the cloud is within the distance of the last
    choice of a chosen point, and the chosen points are at least that far apart. Time grows
    with K N / 64 and with the points near each choice; memory is about 100 bytes a point.

    Examples
    --------
    >>> farthest_points([[0, 0], [1, 0], [5, 0], [9, 0]], 3)
    array([0, 3, 2])
    """
    cloud = check_points(points)
    num_points = len(cloud)
    if not 1 <= count <= num_points:
        raise InputError(
            f"Cannot choose {count} of {num_points} points. The count must be from 1 to the "
            "number of points."
        )
    if not 0 <= start < num_points:
        raise InputError(
            f"Invalid start {start}. It must be a row of the {num_points} points, from 0."
        )
    ids = _z_order(cloud)
    num_buckets = -(-num_points // _BUCKET)
    edges = np.minimum(np.arange(num_buckets + 1) * _BUCKET, num_points)
    chosen = np.empty(count, dtype=np.int64)
    farthest_points_buckets(
        cloud[ids],
        ids,
        edges,
        int(np.flatnonzero(ids == start)[0]),
        np.full(num_points, np.inf),
        np.empty((num_buckets, cloud.shape[1])),
        np.empty((num_buckets, cloud.shape[1])),
        np.empty(num_buckets),
        np.zeros(num_buckets, dtype=np.int64),
        chosen,
    )
    return chosen


def _z_order(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the (N,) rows along a space-filling curve, so that neighbours are close.

    The curve runs through the ranks of the coordinates, not the coordinates: clouds that are
    dense in one place and thin in another are cut evenly, whatever their unit.
    """
    num_points, ndim = points.shape
    bits = 20
    code = np.zeros(num_points, dtype=np.uint64)
    for axis in range(ndim):
        rank = np.empty(num_points, dtype=np.uint64)
        rank[np.argsort(points[:, axis], kind="stable")] = np.arange(num_points, dtype=np.uint64)
        rank = rank * np.uint64(2**bits - 1) // np.uint64(max(1, num_points - 1))
        for bit in range(bits):
            digit = (rank >> np.uint64(bit)) & np.uint64(1)
            code |= digit << np.uint64(bit * ndim + axis)
    return np.argsort(code, kind="stable")
