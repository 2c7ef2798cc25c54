"""A transform as other tools read it: an OME-NGFF 0.6 (RFC-5) scene of points and maps.

The scene names three coordinate systems and the maps between them, each from the points of its
input to the points of its output:

* ``fixed -> reference``: the identity, or a translation where the first fixed voxel is not at 0.
  The reference has its origin there, so that a field on it needs no translation of its own, which
  some readers ignore.
* ``moving -> reference``: affine, the inverse of the affine part. Readers without displacements
  show the two images with it.
* ``reference -> moving``: displacements, the whole map: output = input + d, affine part included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.grid import Grid
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["FIELD_PATH", "Displacements", "field_metadata", "sample", "scene_metadata"]

FIELD_PATH = "coordinateTransformations/fixed_to_moving"
_NAME = "fixed_to_moving"
_VERSION = "0.6"
_MAX_BYTES = 16_000_000
_TOLERANCE_VOXELS = 0.05
_EPSILON32 = 2.0**-24  # the largest relative error of rounding to float32


@dataclass(frozen=True, eq=False, kw_only=True)
class Displacements:
    """A transform sampled on a lattice, to be interpolated linearly.

    Parameters
    ----------
    values : (D, n_1, .., n_D) float32 or float64 ndarray, micrometre
        Moving position minus position on the reference; component i belongs to axis i.
    grid : Grid
        Where the samples are, in the fixed world.
    error_bound : float, micrometre
        No point of the fixed grid is further off than this.
    error_measured : float, micrometre
        The largest distance from the exact transform at the centres of all lattice cells.
    """

    values: NDArray[Any]
    grid: Grid
    error_bound: float
    error_measured: float


def sample(transform: Transform, fixed_grid: Grid, *, max_bytes: int = _MAX_BYTES) -> Displacements:
    """Sample a transform over a grid, finely enough for linear interpolation.

    The lattice starts at the first voxel and ends one voxel behind the last. Its spacing is chosen
    so that no point is off by more than 0.05 of the smallest voxel edge, unless that takes more
    than `max_bytes`: then it is as fine as they allow.

    Notes
    -----
    Linear interpolation along axis a with steps h_a is off by at most ``h_a^2 / 8 max|d2u/da2|``,
    and by ``h_a / 4 max|du/da|`` more for either end of u's lattice that lies inside the grid:
    there u stops varying. The errors of the axes add up. Both maxima of a cubic B-spline follow
    from differences of its coefficients.
    """
    tolerance = _TOLERANCE_VOXELS * min(fixed_grid.spacing)
    low = np.asarray(fixed_grid.origin)
    high = low + np.asarray(fixed_grid.extent)
    reach = max(float(np.abs(np.asarray(b) - low).max()) for b in transform.bounds(low, high))
    rounding = _EPSILON32 * (reach + float((high - low).max())) * math.sqrt(transform.ndim)
    dtype = np.dtype(np.float32 if 10 * rounding <= tolerance else np.float64)
    bends, kinks = _roughness(transform.field, low, high)
    cells = _choose_cells(
        fixed_grid.extent,
        bends,
        kinks,
        tolerance=tolerance,
        max_nodes=max_bytes // (dtype.itemsize * transform.ndim),
    )
    grid = Grid(
        shape=tuple(n + 1 for n in cells),
        spacing=tuple(e / n for e, n in zip(fixed_grid.extent, cells, strict=True)),
        origin=fixed_grid.origin,
    )
    exact = _displacements(transform, grid, low)
    values = exact.astype(dtype)
    error = _interpolation_error(np.asarray(grid.spacing), bends, kinks)
    error += float(np.linalg.norm(values - exact, axis=0).max())
    return Displacements(
        values=values,
        grid=grid,
        error_bound=float(error),
        error_measured=_measure(transform, values, grid, low),
    )


def scene_metadata(transform: Transform, fixed_grid: Grid) -> dict[str, Any]:
    """Return the value of the attribute 'ome' of the group of the scene."""
    origin = np.asarray(fixed_grid.origin)
    to_reference = Affine(np.eye(fixed_grid.ndim), -origin)
    inverse = to_reference.compose(transform.affine.inverse)
    fixed: dict[str, Any] = {"type": "identity"}
    if origin.any():
        fixed = {"type": "translation", "translation": to_reference.offset.tolist()}
    rows = np.column_stack([inverse.matrix, inverse.offset]).tolist()
    field = {"type": "displacements", "path": FIELD_PATH, "interpolation": "linear"}
    systems = [
        {"name": name, "axes": _space_axes(fixed_grid)} for name in ("reference", "fixed", "moving")
    ]
    return {
        "version": _VERSION,
        "scene": {
            "coordinateSystems": systems,
            "coordinateTransformations": [
                fixed | _edge("fixed", "reference"),
                {"type": "affine", "affine": rows} | _edge("moving", "reference"),
                field | _edge("reference", "moving"),
            ],
        },
    }


def field_metadata(grid: Grid) -> dict[str, Any]:
    """Return the value of the attribute 'ome' of the multiscale group of the displacements."""
    vector = {"name": "d", "type": "displacement", "discrete": True}
    scale = {
        "type": "scale",
        "scale": [1.0, *grid.spacing],
        "input": {"path": "s0"},
        "output": {"name": "physical"},
    }
    multiscale = {
        "name": _NAME,
        "coordinateSystems": [{"name": "physical", "axes": [vector, *_space_axes(grid)]}],
        "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
    }
    return {"version": _VERSION, "multiscales": [multiscale]}


def _edge(first: str, last: str) -> dict[str, Any]:
    """Return the ends of a map between two coordinate systems of the scene."""
    return {"input": {"name": first}, "output": {"name": last}}


def _space_axes(grid: Grid) -> list[dict[str, Any]]:
    """Return the axes of a coordinate system in micrometre."""
    return [
        {"name": axis, "type": "space", "unit": "micrometer", "discrete": False}
        for axis in grid.axes
    ]


def _roughness(
    field: DisplacementField | None, low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, an axis each, the largest |d2u/da2| and the largest bend of slope at u's ends."""
    bends, kinks = np.zeros(len(low)), np.zeros(len(low))
    if field is None:
        return bends, kinks
    first, last = field.domain
    for axis, step in enumerate(field.spacing):
        if field.nodes[axis] == 1:
            continue
        slopes = np.diff(field.coefficients, axis=axis) / step
        second = np.diff(slopes, axis=axis) / step
        bends[axis] = np.linalg.norm(second, axis=-1).max()
        num_ends = int(low[axis] < first[axis]) + int(high[axis] > last[axis])
        kinks[axis] = num_ends * np.linalg.norm(slopes, axis=-1).max()
    return bends, kinks


def _interpolation_error(
    steps: NDArray[np.float64], bends: NDArray[np.float64], kinks: NDArray[np.float64]
) -> float:
    """Return a bound of the error of linear interpolation with these steps."""
    return float((bends * steps**2 / 8 + kinks * steps / 4).sum())


def _choose_cells(
    extent: tuple[float, ...],
    bends: NDArray[np.float64],
    kinks: NDArray[np.float64],
    *,
    tolerance: float,
    max_nodes: int,
) -> tuple[int, ...]:
    """Return the number of cells an axis that shares the tolerance evenly among rough axes."""
    rough = (bends > 0) | (kinks > 0)
    share = tolerance / max(1, int(rough.sum()))
    while True:
        # The positive root of bends h^2 / 8 + kinks h / 4 = share, in a form without cancellation.
        root = kinks / 4 + np.sqrt(kinks**2 / 16 + bends * share / 2)
        inverse_steps = np.where(rough, root / (2 * share), 0.0)
        cells = np.maximum(1, np.ceil(np.asarray(extent) * inverse_steps))
        if float(np.prod(cells + 1)) <= max(max_nodes, 2 ** len(extent)):
            return tuple(int(n) for n in cells)
        share *= 1.02


def _positions(grid: Grid, plane: int) -> NDArray[np.float64]:
    """Return the world positions of one plane of a grid, (N, D)."""
    index = np.indices((1, *grid.shape[1:])).reshape(grid.ndim, -1).T
    return grid.to_world(index + [plane, *(0,) * (grid.ndim - 1)])


def _displacements(
    transform: Transform, grid: Grid, start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the exact displacements (D, n_1, .., n_D) from the reference to the moving world."""
    values = np.empty((grid.ndim, *grid.shape))
    for plane in range(grid.shape[0]):
        points = _positions(grid, plane)
        moved = transform(points) - (points - start)
        values[:, plane] = moved.T.reshape(grid.ndim, *grid.shape[1:])
    return values


def _measure(
    transform: Transform, values: NDArray[Any], grid: Grid, start: NDArray[np.float64]
) -> float:
    """Return the largest error of linear interpolation at the centres of all cells."""
    centres = Grid(
        shape=tuple(n - 1 for n in grid.shape),
        spacing=grid.spacing,
        origin=tuple(o + s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)),
    )
    worst = 0.0
    for plane, pair in enumerate(pairwise(range(grid.shape[0]))):
        middle = values[:, pair].astype(np.float64).mean(axis=1)
        for axis in range(1, grid.ndim):
            left, right = np.delete(middle, -1, axis=axis), np.delete(middle, 0, axis=axis)
            middle = (left + right) / 2
        points = _positions(centres, plane)
        exact = (transform(points) - (points - start)).T
        error = np.linalg.norm(middle.reshape(grid.ndim, -1) - exact, axis=0)
        worst = max(worst, float(error.max()))
    return worst
