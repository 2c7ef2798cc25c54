"""Any map on points held by a lattice of cubic B-splines, with a bound of the error.

Files, lazy warps and source windows need a transform of an affine map and a lattice. A model that
is a sum over control points is sampled at the nodes of a lattice, finer and finer until what
is between the nodes is right as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_banded

from tilereg.errors import InputError
from tilereg.lattice import Lattice
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["MOST_NODES", "Sampled", "sample_on_lattice"]

Floats = NDArray[np.float64]
PointMap = Callable[[Floats], Floats]

MOST_NODES = 200_000
"""Most nodes of a lattice unless another number is given."""

# Cells of the first lattice along the longest side of the box, and of any along each side:
# splines without a knot next to their ends need three.
_FIRST_CELLS, _FEWEST_CELLS = 6, 3
# By how much the nodes are brought nearer in a step; the error of cubic splines falls with the
# fourth power of their distance.
_LEAST_STEP, _MOST_STEP, _ORDER, _MARGIN = 0.85, 0.3, 4.0, 0.9
# By how much they are parted again until a lattice has not too many.
_COARSER = 1.05
# By how much the error anywhere is taken to be larger than the largest that was measured.
_SAFETY = 1.25
# Points at which a lattice is tried before it is looked at everywhere.
_TRIED = 5000
_CHUNK = 100_000


@dataclass(frozen=True)
class Sampled:
    """A map that is held by a lattice.

    Parameters
    ----------
    transform : Transform
    error : float, micrometre
        Bound of its distance from the map inside the box: a quarter more than the largest that
        was measured.
    num_checked : int
        Points at which it was measured.
    """

    transform: Transform
    error: float
    num_checked: int


def sample_on_lattice(
    map_: PointMap,
    low: ArrayLike,
    high: ArrayLike,
    *,
    affine: Affine,
    tolerance: float,
    at: ArrayLike | None = None,
    most_nodes: int = MOST_NODES,
) -> Sampled:
    """Hold a map on points by an affine map and a lattice of cubic B-splines.

    Parameters
    ----------
    map_ : callable
        Moves (N, D) points, micrometre; called with at most 100,000 at once.
    low, high : (D,) array_like, micrometre
        Box in which the field varies; outside it is that of the nearest point of the box.
    affine : Affine
        What of the map is kept apart.
    tolerance : float, micrometre
        Largest distance from the map inside of the box.
    at : (K, D) array_like, micrometre, optional
        Points where the map is the least smooth, control points for example.
    most_nodes : int

    Returns
    -------
    Sampled

    Raises
    ------
    InputError
        If the tolerance is not above zero, or cannot be kept with so many nodes.

    Notes
    -----
    The spline equals the map at the nodes inside the box, and has no knot next to its ends, so
    polynomials of the third degree are held exactly. What it misses of a smooth map is, up to
    higher orders, ``sum_d a_d t_d^2 (1 - t_d)^2`` at the fractions t of a cell, extreme in
    the middle of the cell, of its faces or of its edges: all of these are measured, and the
    points `at` besides. The error stated is a quarter more than the largest. Time grows with
    nine evaluations of the map a node; memory is that of the lattice.

    Examples
    --------
    >>> import numpy as np
    >>> held = sample_on_lattice(
    ...     lambda x: x + 0.1 * np.sin(x),
    ...     [0, 0],
    ...     [9, 9],
    ...     affine=Affine.identity(2),
    ...     tolerance=1e-3,
    ... )
    >>> held.error <= 1e-3, held.transform.field.nodes
    (True, (18, 18))
    """
    box = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    _check_numbers(tolerance, most_nodes, len(box[0]))
    marked = np.empty((0, len(box[0]))) if at is None else np.asarray(at, dtype=np.float64)
    marked = marked[((marked >= box[0]) & (marked <= box[1])).all(axis=1)]
    spacing = float((box[1] - box[0]).max()) / _FIRST_CELLS
    is_finest = False
    while True:
        lattice = _lattice(*box, spacing)
        while lattice.size > most_nodes:
            is_finest, spacing = True, spacing * _COARSER
            lattice = _lattice(*box, spacing)
        transform = Transform(affine, _interpolated(map_, affine, lattice))
        worst, num_checked = _worst(map_, transform, lattice, marked, tolerance / _SAFETY)
        error = _SAFETY * worst
        if error <= tolerance:
            return Sampled(transform, error, num_checked)
        if is_finest:
            raise _too_fine(tolerance, lattice, error, most_nodes)
        step = _MARGIN * (tolerance / error) ** (1 / _ORDER)
        spacing *= min(max(step, _MOST_STEP), _LEAST_STEP)


def _check_numbers(tolerance: float, most_nodes: int, ndim: int) -> None:
    """Raise unless a lattice can be sought."""
    if not tolerance > 0:
        raise InputError(f"Invalid tolerance {tolerance} um of a lattice. It must be > 0.")
    least = (_FEWEST_CELLS + 3) ** ndim
    if most_nodes < least:
        raise InputError(f"Invalid most_nodes {most_nodes}. It must be at least {least}.")


def _too_fine(tolerance: float, lattice: Lattice, error: float, most_nodes: int) -> InputError:
    """Say that a map cannot be held, and what would help."""
    spacing = max(lattice.spacing)
    return InputError(
        f"The field cannot be held to {tolerance:.3g} um by a lattice of at most {most_nodes} "
        f"nodes: one of {lattice.size} nodes, {spacing:.3g} um apart, misses it by {error:.3g} um. "
        f"Give a tolerance above {error:.2g} um, more smoothing or a smoother kernel."
    )


def _lattice(low: Floats, high: Floats, spacing: float) -> Lattice:
    """Return a lattice whose domain is the box; an axis without extent gets one node."""
    extent = high - low
    cells = np.where(
        extent > 0, np.maximum(np.ceil(extent / max(spacing, 1e-300) - 1e-9), _FEWEST_CELLS), 1
    )
    steps = np.where(extent > 0, extent / cells, 1.0)
    origin = np.where(extent > 0, low - steps, low)
    nodes = np.where(extent > 0, cells + 3, 1).astype(np.int64)
    return Lattice(tuple(origin.tolist()), tuple(steps.tolist()), tuple(nodes.tolist()))


def _axes(lattice: Lattice, between: int) -> list[Floats]:
    """Return coordinates an axis from end to end of the domain, `between` a cell."""
    axes: list[Floats] = []
    for origin, step, nodes in zip(lattice.origin, lattice.spacing, lattice.nodes, strict=True):
        places = np.arange(1 if nodes == 1 else between * (nodes - 3) + 1) / between
        axes.append(origin + step * (places + (nodes > 1)))
    return axes


def _interpolated(map_: PointMap, affine: Affine, lattice: Lattice) -> DisplacementField:
    """Return the field that equals a map less an affine one at the nodes inside the domain."""
    axes = _axes(lattice, 1)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = np.empty_like(points)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        values[part] = map_(points[part]) - affine(points[part])
    coefficients = values.reshape(*(len(axis) for axis in axes), len(axes))
    for axis, nodes in enumerate(lattice.nodes):
        if nodes > 1:
            coefficients = _along(coefficients, axis)
    return lattice.field(np.ascontiguousarray(coefficients))


def _along(values: Floats, axis: int) -> Floats:
    """Return coefficients along an axis, two more than there are values.

    The third derivative has no jump at the nodes next to the ends ("not a knot").
    """
    moved = np.moveaxis(values, axis, 0)
    count = len(moved) + 2
    bands = np.zeros((9, count))
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        columns = np.arange(1, count - 1) + offset
        bands[4 - offset, columns] = weight
    for offset, weight in enumerate((1.0, -4.0, 6.0, -4.0, 1.0)):
        bands[4 - offset, offset] = weight
        bands[4 + offset, count - 1 - offset] = weight
    right = np.zeros((count, *moved.shape[1:]))
    right[1:-1] = moved
    solved = solve_banded((4, 4), bands, right.reshape(count, -1), check_finite=False)
    return np.moveaxis(np.asarray(solved).reshape(right.shape), 0, axis)


def _worst(
    map_: PointMap, transform: Transform, lattice: Lattice, marked: Floats, enough: float
) -> tuple[float, int]:
    """Return the largest distance that was measured, and at how many points.

    At some points first: where that is too much already, the rest is not looked at.
    """
    axes = _axes(lattice, 2)
    shape = tuple(len(axis) for axis in axes)
    num_points = math.prod(shape)
    # An odd step: an even one would meet the nodes, where the error is zero.
    ranks = np.arange(0, num_points, max(1, num_points // _TRIED) | 1)

    def distance(points: Floats) -> float:
        gap = map_(points) - transform(points)
        return float(np.linalg.norm(gap, axis=1).max(initial=0.0))

    def at_ranks(ranks: NDArray[np.int64]) -> Floats:
        places = np.unravel_index(ranks, shape)
        return np.stack([axis[i] for axis, i in zip(axes, places, strict=True)], axis=1)

    worst = max(distance(marked), distance(at_ranks(ranks)))
    if worst > enough or len(ranks) == num_points:
        return worst, len(marked) + len(ranks)
    for start in range(0, num_points, _CHUNK):
        stop = min(start + _CHUNK, num_points)
        worst = max(worst, distance(at_ranks(np.arange(start, stop))))
        if worst > enough:
            break
    return worst, len(marked) + num_points
