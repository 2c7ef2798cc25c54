"""Synthetic rounds with a known deformation.

`demo_rounds` makes two rounds of fluorescent spots of any size, voxel by voxel on demand.
`benchmark_pair` makes the volumes of a published benchmark of intensity-based registration
from its definitions, and harder variants of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from tilereg.benchmark_fields import BENCHMARK_FIELDS, FieldPreset, benchmark_field
from tilereg.benchmark_pairs import (
    BENCHMARK_VOLUMES,
    BenchmarkPair,
    benchmark_pair,
)
from tilereg.benchmark_variants import BenchmarkVariant
from tilereg.deformations import GaussianBumps
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.pulling import PulledVolume, PullMap
from tilereg.rendering import CUT, SyntheticVolume, render_spots
from tilereg.windows import Window

__all__ = [
    "BENCHMARK_FIELDS",
    "BENCHMARK_VOLUMES",
    "BenchmarkPair",
    "BenchmarkVariant",
    "FieldPreset",
    "PullMap",
    "PulledVolume",
    "SyntheticRounds",
    "SyntheticVolume",
    "benchmark_field",
    "benchmark_pair",
    "demo_rounds",
    "render_spots",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticRounds:
    """Two rounds of spots and the map between them."""

    fixed: SyntheticVolume
    """The fixed round, read by windows."""
    moving: SyntheticVolume
    """The moving round, read by windows."""
    true_map: GaussianBumps
    """Fixed to moving, micrometre to micrometre."""
    fixed_points: NDArray[np.float64]
    """(N, D) centres in micrometre of the spots that the fixed round shows."""
    moving_points: NDArray[np.float64]
    """(M, D) centres in micrometre of the spots that the moving round shows."""
    pairs: NDArray[np.int64]
    """(P, 2) rows of fixed and moving points that are the same spot."""

    @property
    def fixed_grid(self) -> Grid:
        """Where the voxels of the fixed round are."""
        return self.fixed.grid

    @property
    def moving_grid(self) -> Grid:
        """Where the voxels of the moving round are."""
        return self.moving.grid

    def true_inverse(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (M, D) points moving to fixed, in micrometre, to 1e-12 of the coordinates."""
        return self.true_map.inverse(points)

    def read_fixed(self, window: Window) -> NDArray[Any]:
        """Compute a window of the fixed round."""
        return self.fixed.read(window)

    def read_moving(self, window: Window) -> NDArray[Any]:
        """Compute a window of the moving round."""
        return self.moving.read(window)


def demo_rounds(
    shape: Sequence[int] = (48, 384, 384),
    *,
    spacing: Sequence[float] = (0.6, 0.3, 0.3),
    num_spots: int = 3000,
    drop_out: float = 0.3,
    rotation: float = 3.0,
    shift: float = 30.0,
    bump: float = 7.0,
    seed: int = 0,
) -> SyntheticRounds:
    """Make two rounds of spots, the second turned, shifted and bent by a known map.

    The spots fill both volumes and lie between voxels. They have a sigma of 1.4 voxels, an
    amplitude of 200 +- 20 % above a background of 200 with noise 20, and each round shows a
    part of them. The moving volume differs in shape from the fixed one.

    Parameters
    ----------
    shape : (D,) ints
        Voxels of the fixed round; two or three axes.
    spacing : (D,) floats, micrometre
    num_spots : int
        How many spots lie in the fixed volume, about, before any are dropped.
    drop_out : float
        Share of spots that a round does not show, drawn for either round on its own.
    rotation : float, degrees
        About z; in 3D a sixth of it tilts the volume as well.
    shift : float, voxels
        Length of the shift in y and x; a tenth of it goes along z.
    bump : float, voxels
        Largest displacement by the Gaussian bumps, in the finest spacing.
    seed : int

    Raises
    ------
    InputError
        If a number is out of range, or the bumps would fold the volume.

    Examples
    --------
    >>> rounds = demo_rounds((16, 64, 64), num_spots=50, shift=5.0, bump=1.0)
    >>> rounds.fixed.read(rounds.fixed_grid.window).shape
    (16, 64, 64)
    """
    fixed_grid = Grid(shape=tuple(shape), spacing=tuple(spacing))
    if num_spots < 1 or not 0 <= drop_out < 1 or bump < 0 or seed < 0:
        raise InputError(
            f"Invalid demo of {num_spots} spots, drop-out {drop_out}, bump {bump}, seed {seed}. "
            "Spots must be >= 1, the drop-out from 0 to below 1, bump and seed >= 0."
        )
    # A few voxels more or less an axis: nothing may rely on equal shapes.
    moving_grid = Grid(
        shape=tuple(max(1, n + (-1) ** axis * (n // 12)) for axis, n in enumerate(shape)),
        spacing=tuple(spacing),
    )
    if not all(map(math.isfinite, (rotation, shift, bump))):
        raise InputError(
            f"Invalid rotation {rotation}, shift {shift} or bump {bump}. They must be finite."
        )
    rng = np.random.default_rng(seed)
    true_map = _demo_map(fixed_grid, moving_grid, rotation, shift, bump, rng)
    fixed_all = _scatter(fixed_grid, moving_grid, true_map, num_spots, rng)
    moving_all = true_map(fixed_all)
    seen = rng.uniform(size=(2, len(fixed_all))) >= drop_out
    amplitudes = 200.0 * rng.uniform(0.8, 1.2, size=(2, len(fixed_all)))
    inside = np.stack([fixed_grid.contains(fixed_all), moving_grid.contains(moving_all)]) & seen
    rows = np.cumsum(inside, axis=1) - 1
    volumes = [
        SyntheticVolume(
            grid=grid,
            positions_index=grid.to_index(points[keep]),
            amplitudes=heights[keep],
            sigma_voxels=(1.4,) * grid.ndim,
            seed=(seed, stream),
        )
        for stream, (grid, points, keep, heights) in enumerate(
            zip((fixed_grid, moving_grid), (fixed_all, moving_all), seen, amplitudes, strict=True)
        )
    ]
    return SyntheticRounds(
        fixed=volumes[0],
        moving=volumes[1],
        true_map=true_map,
        fixed_points=fixed_all[inside[0]],
        moving_points=moving_all[inside[1]],
        pairs=rows[:, inside.all(axis=0)].T.copy(),
    )


def _demo_map(
    fixed: Grid, moving: Grid, rotation: float, shift: float, bump: float, rng: np.random.Generator
) -> GaussianBumps:
    """Return the map of `demo_rounds`, fixed to moving."""
    ndim = fixed.ndim
    # Rotation wants x, y, z; the matrix is turned around to z, y, x.
    turn = Rotation.from_rotvec([rotation / 6, -rotation / 6, rotation], degrees=True)
    flat = Rotation.from_rotvec([0, 0, rotation], degrees=True)
    matrix = (turn if ndim == 3 else flat).as_matrix()[::-1, ::-1][-ndim:, -ndim:]
    direction = np.array([0.1, -0.8, 0.6])[-ndim:]
    middle_fixed, middle_moving = (np.mean(grid.bounds, axis=0) for grid in (fixed, moving))
    offset = middle_moving - matrix @ middle_fixed + direction * shift * fixed.spacing
    low, high = fixed.bounds
    extent = np.asarray(fixed.extent)
    num_bumps = 6
    directions = rng.normal(size=(num_bumps, ndim))
    bumps = GaussianBumps(
        matrix=np.ascontiguousarray(matrix),
        offset=offset,
        centres=rng.uniform(low, high, size=(num_bumps, ndim)),
        amplitudes=directions / np.linalg.norm(directions, axis=1, keepdims=True),
        widths=np.full(num_bumps, 0.15 * extent.max()),
    )
    places = np.stack(np.meshgrid(*[np.linspace(0, 1, 17)] * ndim), axis=-1).reshape(-1, ndim)
    places = low + places * (high - low)
    largest = np.linalg.norm(bumps.displacement(places), axis=1).max()
    result = GaussianBumps(
        bumps.matrix,
        bumps.offset,
        bumps.centres,
        bumps.amplitudes * bump * min(fixed.spacing) / largest,
        bumps.widths,
    )
    smallest = np.linalg.det(result.jacobian(places)).min()
    if smallest < 0.2:
        raise InputError(
            f"Bumps of {bump} voxels nearly fold a volume of shape {fixed.shape}: the smallest "
            f"Jacobian determinant is {smallest:.2f}, and 0.2 is the least. Use smaller bumps or "
            "a larger volume."
        )
    return result


def _scatter(
    fixed: Grid, moving: Grid, true_map: GaussianBumps, num_spots: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (N, D) uniform points in the fixed world, covering both volumes and their rims."""
    rim = CUT * 1.4 * np.asarray(fixed.spacing)
    corners = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * fixed.ndim), axis=-1)
    low, high = moving.bounds
    moving_box = low - rim + corners.reshape(-1, fixed.ndim) * (high - low + 2 * rim)
    reached = true_map.inverse(moving_box)
    low = np.minimum(reached.min(axis=0), fixed.bounds[0]) - rim
    high = np.maximum(reached.max(axis=0), fixed.bounds[1]) + rim
    count = round(num_spots * float(np.prod((high - low) / np.asarray(fixed.extent))))
    return rng.uniform(low, high, size=(count, fixed.ndim))
