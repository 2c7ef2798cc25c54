"""The test cloud of matching: spots in cells and between them, a known map, partners for some.

Half of the spots lie in cells. The map is a rotation of some degrees, a shift, and Gaussian bumps;
each cloud has localisation noise of its own and spots that the other lacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]

_DENSITY = 0.1420  # times nearest^-3: then the mean distance of nearest neighbours is `nearest`
_IN_CELLS, _CELL_SIZE, _A_CELL = 0.5, 20.0, 30
_LEAST_DISTANCE = 2.0
_SHEAR = 0.004
# Bumps are nothing beyond so many widths.
_REACH = math.sqrt(30.0)


@dataclass(frozen=True)
class CloudSpec:
    """What a pair of clouds is like; lengths in voxels.

    Parameters
    ----------
    count : int
        Spots of either cloud.
    seed : int
    overlap : float
        Share of them that have a partner.
    noise : float
        Standard deviation of a position an axis, in both clouds.
    bump, width : float
        Largest displacement by the bumps, and their scale.
    rotation : float, degrees
        About `axis`; beside it there is a tilt of half a degree.
    axis : tuple of float
    shift : float
        Length of the translation.
    depth, nearest : float
        Extent of the box along its last axis, and mean distance of nearest neighbours.
    """

    count: int
    seed: int = 0
    overlap: float = 0.75
    noise: float = 0.3
    bump: float = 10.0
    width: float = 150.0
    rotation: float = 3.0
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    shift: float = 20.0
    depth: float = 200.0
    nearest: float = 12.0


@dataclass(frozen=True)
class KnownMap:
    """``A (x - c) + c + t + sum of bumps``."""

    matrix: Floats
    centre: Floats
    offset: Floats
    centres: Floats
    amplitudes: Floats
    width: float

    def affine(self, points: Floats) -> Floats:
        """Map points without the bumps."""
        return (points - self.centre) @ self.matrix.T + self.centre + self.offset

    def __call__(self, points: Floats) -> Floats:
        """Map (N, 3) points."""
        return self.affine(points) + self.bumps(points)

    def bumps(self, points: Floats) -> Floats:
        """Return the part (N, 3) that is not affine: tile by tile, of the bumps near enough."""
        out = np.empty_like(points)
        tile = np.floor(points[:, :2] / (2 * self.width)).astype(np.int64)
        order = np.lexsort(tile.T)
        starts = np.flatnonzero((np.diff(tile[order], axis=0, prepend=tile[order][:1] - 1)).any(1))
        for rows in np.split(order, starts[1:]):
            part = points[rows]
            low, high = part.min(axis=0), part.max(axis=0)
            gap = np.maximum(np.maximum(low - self.centres, self.centres - high), 0.0)
            near = (gap**2).sum(axis=1) < (_REACH * self.width) ** 2
            out[rows] = self._near(part, near)
        return out

    def _near(self, points: Floats, near: NDArray[np.bool_]) -> Floats:
        """Add up some of the bumps."""
        square = cdist(points, self.centres[near], "sqeuclidean")
        return np.asarray(np.exp(-0.5 / self.width**2 * square) @ self.amplitudes[near])


@dataclass(frozen=True)
class SpotClouds:
    """Two clouds and the map between them.

    `partner` holds for each fixed spot the row of its moving spot, -1 where there is none.
    """

    spec: CloudSpec
    fixed: Floats
    moving: Floats
    partner: NDArray[np.int64]
    map: KnownMap


def make_clouds(spec: CloudSpec) -> SpotClouds:
    """Make the clouds; the same specification gives the same bits."""
    rng = np.random.default_rng(spec.seed)
    side = math.sqrt(spec.count / (_DENSITY * spec.nearest**-3) / spec.depth)
    box = np.array([side, side, spec.depth])
    cells = rng.uniform(0, 1, (max(3, int(spec.count * _IN_CELLS / _A_CELL)), 3)) * box
    paired = round(spec.count * spec.overlap)
    alone = spec.count - paired
    points = _scattered(rng, int((paired + 2 * alone) * 1.15) + 20, box, cells)
    points = points[_apart(points)][: paired + 2 * alone]
    if len(points) < paired + 2 * alone:
        raise ValueError("Too many spots are too near to one another.")
    map_ = _known_map(rng, spec, box)
    fixed = points[: paired + alone]
    moving = map_(np.concatenate([points[:paired], points[paired + alone :]]))
    fixed, moving = (p + rng.normal(0, spec.noise, p.shape) for p in (fixed, moving))
    order, other = rng.permutation(spec.count), rng.permutation(spec.count)
    row_of = np.empty(spec.count, dtype=np.int64)
    row_of[other] = np.arange(spec.count)
    partner = np.where(order < paired, row_of[order], -1)
    return SpotClouds(spec, fixed[order], moving[other], partner, map_)


def _scattered(rng: np.random.Generator, count: int, box: Floats, cells: Floats) -> Floats:
    """Return points in a box, half of them uniform and half in Gaussian cells."""
    in_cells = int(count * _IN_CELLS)
    parts = [rng.uniform(0, 1, (count - in_cells, 3)) * box]
    while in_cells:
        around = cells[rng.integers(len(cells), size=2 * in_cells + 10)]
        found = around + rng.normal(0, _CELL_SIZE, around.shape)
        found = found[((found >= 0) & (found <= box)).all(axis=1)][:in_cells]
        in_cells -= len(found)
        parts.append(found)
    return rng.permutation(np.concatenate(parts))


def _apart(points: Floats) -> NDArray[np.int64]:
    """Return the rows of points such that no two are nearer than the least distance."""
    close = cKDTree(points).query_pairs(_LEAST_DISTANCE, output_type="ndarray")
    keep = np.ones(len(points), dtype=bool)
    keep[close.max(axis=1)] = False
    return np.flatnonzero(keep)


def _known_map(rng: np.random.Generator, spec: CloudSpec, box: Floats) -> KnownMap:
    """Draw a map for a box."""
    tilt = Rotation.from_euler("yx", [-0.5, 0.5], degrees=True).as_matrix()
    turn = Rotation.from_rotvec(_unit(spec.axis) * spec.rotation, degrees=True).as_matrix()
    matrix = turn @ tilt @ (np.eye(3) + rng.uniform(-_SHEAR, _SHEAR, (3, 3)))
    offset = _unit((0.75, -0.6, 0.28)) * spec.shift
    number = int(max(6, np.prod(np.maximum(1, (box + 2 * spec.width) / spec.width))))
    centres = rng.uniform(-spec.width, spec.width + box, (number, 3))
    amplitudes = rng.normal(0, 1, (number, 3))
    map_ = KnownMap(matrix, box / 2, offset, centres, amplitudes, spec.width)
    probe = rng.uniform(0, 1, (int(np.clip(spec.count, 4000, 20_000)), 3)) * box
    largest = float(np.linalg.norm(map_.bumps(probe), axis=1).max())
    amplitudes *= spec.bump / max(largest, 1e-12)
    return map_


def _unit(direction: Sequence[float]) -> Floats:
    """Return a direction of length one."""
    vector = np.asarray(direction, dtype=np.float64)
    return vector / np.linalg.norm(vector)
