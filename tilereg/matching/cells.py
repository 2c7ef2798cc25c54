"""Points sorted into cells, for sums over near neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.kernels import cells as kernels
from tilereg.transform import embed

__all__ = ["CellList", "neighbour_distance"]

Floats = NDArray[np.float64]

_CELLS_PER_POINT = 4
_MOST_IN_A_CELL = 100
# Points that tell how far a neighbour is, before all are asked.
_ASKED = 1000


@dataclass(frozen=True, eq=False)
class CellList:
    """A cloud of points in the order of the cells of a regular grid.

    Parameters
    ----------
    low, inverse : (3,) ndarray
        Corner of the first cell and one over the cell size.
    cells : (3,) ndarray
        Number of cells an axis.
    start : (num_cells + 1,) ndarray
        Where each cell's points begin.
    order : (N,) ndarray
        Rows of the cloud in cell order.
    points : (N, 3) ndarray
        The cloud in cell order.
    """

    low: Floats
    inverse: Floats
    cells: NDArray[np.int64]
    start: NDArray[np.int64]
    order: NDArray[np.int64]
    points: Floats

    @classmethod
    def build(cls, points: Floats, size: float) -> CellList:
        """Sort (N, D) points into cells of at least `size`; empty space costs no memory."""
        cloud = embed(points)
        low = cloud.min(axis=0)
        extent = np.maximum(cloud.max(axis=0) - low, 1e-12)
        most = max(_CELLS_PER_POINT * len(cloud), 64)
        cells = np.maximum(1, np.ceil(extent / size))
        while cells.prod() > most:
            size *= 1.25
            cells = np.maximum(1, np.ceil(extent / size))
        counts = cells.astype(np.int64)
        start = np.zeros(int(counts.prod()) + 1, dtype=np.int64)
        order = np.empty(len(cloud), dtype=np.int64)
        ordered = np.empty_like(cloud)
        inverse = np.full(3, 1.0 / size)
        kernels.sort_into_cells(cloud, low, inverse, counts, start, order, ordered)
        return cls(low, inverse, counts, start, order, ordered)

    def gaussian_sum(self, points: Floats, sigma: float, radius: float) -> Floats:
        """Return sum_m exp(-|y_n - x_m|^2 / 2 sigma^2) over the x_m within `radius`, (N,)."""
        out = np.empty(len(points))
        kernels.expectation_target(embed(points), radius, 0.5 / sigma**2, *self._grid(), out)
        return out

    def posterior_sums(
        self, points: Floats, sigma: float, radius: float, factor: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return P1 (M,), sum of p (y - x) (M, D) and sum of p |y - x|^2 (M,) at points x.

        factor (N,) multiplies each stored point's kernel, in the cloud's own order.
        """
        total = np.empty(len(points))
        offset = np.empty((len(points), 3))
        square = np.empty(len(points))
        kernels.expectation_source(
            embed(points), radius, 0.5 / sigma**2, *self._grid(), factor[self.order],
            total, offset, square,
        )  # fmt: skip
        return total, offset[:, 3 - points.shape[1] :], square

    def count_within(self, points: Floats, radius: float) -> NDArray[np.int64]:
        """Return how many stored points lie within `radius` of each point, (N,)."""
        out = np.empty(len(points), dtype=np.int64)
        kernels.count_within(embed(points), radius, *self._grid(), out)
        return out

    @cached_property
    def is_even(self) -> bool:
        """Whether no cell holds so many points that a search in it would take long."""
        return int(np.diff(self.start).max(initial=0)) <= _MOST_IN_A_CELL

    def nearest_within(self, points: Floats, radius: float) -> NDArray[np.int64]:
        """Return the row of the stored point nearest to each point, -1 beyond `radius`, (N,)."""
        out = np.empty(len(points), dtype=np.int64)
        kernels.nearest_within(embed(points), radius, *self._grid(), self.order, out)
        return out

    def neighbour_distance(self, points: Floats, count: int, radius: float) -> Floats:
        """Return the distance of each point to its `count`-th nearest stored point, (N,).

        There must be as many stored points. `radius` is where they are sought first.
        """
        out = np.empty(len(points))
        kernels.neighbour_distance(embed(points), count, radius, *self._grid(), out)
        return out

    def vote(self, points: Floats, low: Floats, high: Floats, bin_size: float) -> Floats:
        """Return the histogram of all differences y - x between low and high (D,), float32.

        The result has D axes of bins of size `bin_size`, the first starting at `low`.
        """
        ndim = points.shape[1]
        corner, last = np.full(3, -bin_size / 2), np.full(3, bin_size / 2)
        corner[3 - ndim :], last[3 - ndim :] = low, high
        bins = np.maximum(1, np.ceil((last - corner) / bin_size - 1e-9)).astype(np.int64)
        histogram = np.zeros(bins, dtype=np.float32)
        middle, reach = (corner + last) / 2, (last - corner) / 2
        cloud = embed(points) + middle
        kernels.vote(cloud, reach, *self._grid(), corner - middle, 1 / bin_size, histogram)
        return histogram.reshape(tuple(int(b) for b in bins[3 - ndim :]))

    def _grid(self) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64], Floats]:
        """Return what every kernel needs to find its way."""
        return self.low, self.inverse, self.cells, self.start, self.points


def neighbour_distance(points: Floats, count: int) -> Floats:
    """Return the distance of each (N, D) point to its `count`-th neighbour, itself not counted."""
    tree = cKDTree(points)
    some = points[:: -(-len(points) // _ASKED)]
    radius = float(np.median(tree.query(some, k=[count + 1])[0]))
    if radius > 0:
        cells = CellList.build(points, radius)
        if cells.is_even:
            return cells.neighbour_distance(points, count + 1, 1.1 * radius)
    return np.asarray(tree.query(points, k=[count + 1])[0][:, 0])
