"""Points sorted into the cells of a regular grid, and Gaussian sums over near neighbours.

The truncated E-step of Coherent Point Drift: no pair farther apart than `radius` is ever formed.
Points are (N, 3); a plane has z = 0 and one cell along z. The cell size is at least the radius
divided by a small number, so a neighbourhood is a few runs of consecutive points.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = [
    "count_within",
    "expectation_source",
    "expectation_target",
    "nearest_within",
    "neighbour_distance",
    "sort_into_cells",
    "vote",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _cell(x: float, low: float, inverse: float, num: int) -> int:
    """Return the clipped cell of a coordinate."""
    # Clipped before it is cut off to a whole number, so that far is far.
    return int(min(max((x - low) * inverse, 0.0), num - 1.0))


@njit(cache=True, nogil=True)
def sort_into_cells(
    points: Floats,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    order: Ints,
    ordered: Floats,
) -> None:
    """Sort points by cell, counting.

    points (N, 3), low (3,), inverse (3,) one over the cell size, cells (3,) numbers of cells.
    Writes start (num_cells + 1,) zeroed before, order (N,) rows in cell order, ordered (N, 3).
    """
    num_points = points.shape[0]
    rank = np.empty(num_points, np.int64)
    for i in range(num_points):
        a = _cell(points[i, 0], low[0], inverse[0], cells[0])
        b = _cell(points[i, 1], low[1], inverse[1], cells[1])
        c = _cell(points[i, 2], low[2], inverse[2], cells[2])
        rank[i] = (a * cells[1] + b) * cells[2] + c
        start[rank[i] + 1] += 1
    for k in range(start.shape[0] - 1):
        start[k + 1] += start[k]
    place = start[:-1].copy()
    for i in range(num_points):
        k = place[rank[i]]
        place[rank[i]] += 1
        order[k] = i
        ordered[k, 0] = points[i, 0]
        ordered[k, 1] = points[i, 1]
        ordered[k, 2] = points[i, 2]


@njit(cache=True, nogil=True)
def expectation_target(
    points: Floats,
    radius: float,
    exponent: float,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    out: Floats,
) -> None:
    """Write sum_m exp(-exponent |y_n - x_m|^2) over the x_m within `radius` of each y_n."""
    limit = radius * radius
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        total = 0.0
        c0 = _cell(x - radius, low[2], inverse[2], cells[2])
        c1 = _cell(x + radius, low[2], inverse[2], cells[2])
        for a in range(
            _cell(z - radius, low[0], inverse[0], cells[0]),
            _cell(z + radius, low[0], inverse[0], cells[0]) + 1,
        ):
            for b in range(
                _cell(y - radius, low[1], inverse[1], cells[1]),
                _cell(y + radius, low[1], inverse[1], cells[1]) + 1,
            ):
                row = (a * cells[1] + b) * cells[2]
                for j in range(start[row + c0], start[row + c1 + 1]):
                    dz, dy, dx = z - ordered[j, 0], y - ordered[j, 1], x - ordered[j, 2]
                    square = dz * dz + dy * dy + dx * dx
                    if square < limit:
                        total += math.exp(-square * exponent)
        out[i] = total


@njit(cache=True, nogil=True)
def expectation_source(
    points: Floats,
    radius: float,
    exponent: float,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    factor: Floats,
    p1: Floats,
    px: Floats,
    square_sum: Floats,
) -> None:
    """Write P1, the mean partner offset and the mean squared distance at every source point.

    factor (M,) are the targets' 1 / (denominator + outlier term) in cell order. Sums are over
    differences y - T(x), not over positions, so nothing is lost to cancellation:
    p1_m = sum_n p_mn, px_m = sum_n p_mn (y_n - T(x_m)), square_sum_m = sum_n p_mn |y_n - T(x_m)|^2.
    """
    limit = radius * radius
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        total, sz, sy, sx, ss = 0.0, 0.0, 0.0, 0.0, 0.0
        c0 = _cell(x - radius, low[2], inverse[2], cells[2])
        c1 = _cell(x + radius, low[2], inverse[2], cells[2])
        for a in range(
            _cell(z - radius, low[0], inverse[0], cells[0]),
            _cell(z + radius, low[0], inverse[0], cells[0]) + 1,
        ):
            for b in range(
                _cell(y - radius, low[1], inverse[1], cells[1]),
                _cell(y + radius, low[1], inverse[1], cells[1]) + 1,
            ):
                row = (a * cells[1] + b) * cells[2]
                for j in range(start[row + c0], start[row + c1 + 1]):
                    dz, dy, dx = ordered[j, 0] - z, ordered[j, 1] - y, ordered[j, 2] - x
                    square = dz * dz + dy * dy + dx * dx
                    if square < limit:
                        p = math.exp(-square * exponent) * factor[j]
                        total += p
                        sz += p * dz
                        sy += p * dy
                        sx += p * dx
                        ss += p * square
        p1[i] = total
        px[i, 0] = sz
        px[i, 1] = sy
        px[i, 2] = sx
        square_sum[i] = ss


@njit(cache=True, nogil=True)
def count_within(
    points: Floats,
    radius: float,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    out: Ints,
) -> None:
    """Write how many stored points lie within `radius` of each point."""
    limit = radius * radius
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        total = 0
        c0 = _cell(x - radius, low[2], inverse[2], cells[2])
        c1 = _cell(x + radius, low[2], inverse[2], cells[2])
        for a in range(
            _cell(z - radius, low[0], inverse[0], cells[0]),
            _cell(z + radius, low[0], inverse[0], cells[0]) + 1,
        ):
            for b in range(
                _cell(y - radius, low[1], inverse[1], cells[1]),
                _cell(y + radius, low[1], inverse[1], cells[1]) + 1,
            ):
                row = (a * cells[1] + b) * cells[2]
                for j in range(start[row + c0], start[row + c1 + 1]):
                    dz, dy, dx = z - ordered[j, 0], y - ordered[j, 1], x - ordered[j, 2]
                    if dz * dz + dy * dy + dx * dx < limit:
                        total += 1
        out[i] = total


@njit(cache=True, nogil=True)
def nearest_within(
    points: Floats,
    radius: float,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    order: Ints,
    rows: Ints,
) -> None:
    """Write the row of the stored point nearest to each point within `radius`, -1 where none is.

    order (N,) are the rows of the stored points; of points at the same distance the first row.
    """
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        best, found = radius * radius, -1
        c0 = _cell(x - radius, low[2], inverse[2], cells[2])
        c1 = _cell(x + radius, low[2], inverse[2], cells[2])
        for a in range(
            _cell(z - radius, low[0], inverse[0], cells[0]),
            _cell(z + radius, low[0], inverse[0], cells[0]) + 1,
        ):
            for b in range(
                _cell(y - radius, low[1], inverse[1], cells[1]),
                _cell(y + radius, low[1], inverse[1], cells[1]) + 1,
            ):
                row = (a * cells[1] + b) * cells[2]
                for j in range(start[row + c0], start[row + c1 + 1]):
                    dz, dy, dx = z - ordered[j, 0], y - ordered[j, 1], x - ordered[j, 2]
                    square = dz * dz + dy * dy + dx * dx
                    if square < best or (square == best and (found < 0 or order[j] < found)):
                        best, found = square, order[j]
        rows[i] = found


@njit(cache=True, nogil=True)
def neighbour_distance(
    points: Floats,
    count: int,
    radius: float,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    out: Floats,
) -> None:
    """Write the distance of each point to the `count`-th nearest of at least as many stored ones.

    Sought within `radius` first, and farther where fewer are found.
    """
    nearest = np.empty(count)
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        reach = radius
        while True:
            limit = reach * reach
            found = 0
            c0 = _cell(x - reach, low[2], inverse[2], cells[2])
            c1 = _cell(x + reach, low[2], inverse[2], cells[2])
            for a in range(
                _cell(z - reach, low[0], inverse[0], cells[0]),
                _cell(z + reach, low[0], inverse[0], cells[0]) + 1,
            ):
                for b in range(
                    _cell(y - reach, low[1], inverse[1], cells[1]),
                    _cell(y + reach, low[1], inverse[1], cells[1]) + 1,
                ):
                    row = (a * cells[1] + b) * cells[2]
                    for j in range(start[row + c0], start[row + c1 + 1]):
                        dz, dy, dx = z - ordered[j, 0], y - ordered[j, 1], x - ordered[j, 2]
                        square = dz * dz + dy * dy + dx * dx
                        if square > limit or (found == count and square >= nearest[count - 1]):
                            continue
                        # The nearest so far, sorted: the farthest of them makes room.
                        place = min(found, count - 1)
                        while place > 0 and nearest[place - 1] > square:
                            nearest[place] = nearest[place - 1]
                            place -= 1
                        nearest[place] = square
                        found = min(found + 1, count)
            if found == count:
                break
            reach *= 1.5
        out[i] = math.sqrt(nearest[count - 1])


@njit(cache=True, nogil=True)
def vote(
    points: Floats,
    reach: Floats,
    low: Floats,
    inverse: Floats,
    cells: Ints,
    start: Ints,
    ordered: Floats,
    corner: Floats,
    inverse_bin: float,
    histogram: NDArray[np.float32],
) -> None:
    """Add one to the bin of every difference y - x between a stored point y and a point x.

    Only stored points within `reach` (3,) of x an axis are looked at; differences outside of the
    histogram, whose first bin starts at `corner`, do not count.
    """
    n0, n1, n2 = histogram.shape
    for i in range(points.shape[0]):
        z, y, x = points[i, 0], points[i, 1], points[i, 2]
        c0 = _cell(x - reach[2], low[2], inverse[2], cells[2])
        c1 = _cell(x + reach[2], low[2], inverse[2], cells[2])
        for a in range(
            _cell(z - reach[0], low[0], inverse[0], cells[0]),
            _cell(z + reach[0], low[0], inverse[0], cells[0]) + 1,
        ):
            for b in range(
                _cell(y - reach[1], low[1], inverse[1], cells[1]),
                _cell(y + reach[1], low[1], inverse[1], cells[1]) + 1,
            ):
                row = (a * cells[1] + b) * cells[2]
                for j in range(start[row + c0], start[row + c1 + 1]):
                    u = (ordered[j, 0] - z - corner[0]) * inverse_bin
                    v = (ordered[j, 1] - y - corner[1]) * inverse_bin
                    w = (ordered[j, 2] - x - corner[2]) * inverse_bin
                    # Cut off, not floored: that is the same from zero on, and much faster.
                    if 0 <= u < n0 and 0 <= v < n1 and 0 <= w < n2:
                        histogram[int(u), int(v), int(w)] += 1.0
