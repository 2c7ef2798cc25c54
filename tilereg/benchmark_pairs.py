"""The pairs of volumes of a published benchmark of intensity-based registration, and harder ones.

A *tissue* of spots is imaged twice. The reference shows it as it is; the moving image shows it
deformed, and both may miss spots or show others. Lengths are in voxels of y and x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from tilereg.benchmark_fields import benchmark_field
from tilereg.benchmark_variants import PUBLISHED, BenchmarkVariant
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.pulling import PulledVolume, PullInverse, PullMap
from tilereg.rendering import SyntheticVolume
from tilereg.windows import Window

__all__ = ["BENCHMARK_VOLUMES", "BenchmarkPair", "benchmark_pair"]

BENCHMARK_VOLUMES: dict[str, tuple[tuple[int, int, int], int]] = {
    "tiny": ((8, 128, 128), 10),
    "small": ((16, 256, 256), 50),
    "medium": ((32, 512, 512), 400),
    "large": ((30, 1024, 1024), 1500),
    "xlarge": ((30, 1496, 1496), 3400),
    "tissue": ((30, 3072, 3072), 14_000),
    "thick_medium": ((100, 1024, 1024), 5200),
    "thick_large": ((200, 2722, 2722), 74_000),
}
"""Shape and number of spots of each size."""

_MARGIN = (2, 5, 5)  # voxels at the rim without spots
_SIGMA = 1.5  # voxels
_HEIGHTS = (180, 221)  # of the spots, the last one excluded
_BACKGROUND = 20.0
_DEVIATION = math.hypot(5.0, 5.0)  # of the noise: the background's and a further one, both 5
_AMPLITUDE = 200.0  # what the noise is measured by

# Each is drawn from a random stream of its own, so that none changes when another option does.
_TISSUE, _FALSE_REFERENCE, _FALSE_MOVING, _JITTER, _JUMPS = 1, 2, 3, 4, 5
_MISSED_REFERENCE, _MISSED_MOVING, _NOISE, _OWN_NOISE = 6, 7, 8, 9


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkPair:
    """Two volumes of the benchmark, computed where they are read.

    All points are voxel indices; ``index * grid.spacing`` is the world. A spot is shown by an
    image if its centre lies between the centres of the image's first and last voxels.
    """

    reference_volume: SyntheticVolume
    """The fixed volume, read by windows."""
    moving_volume: PulledVolume
    """The moving volume, read by windows: its `source` at ``pull(index)``, zero outside. The
    source is as the reference, with the spots and the noise of the moving image."""
    reference_names: NDArray[np.int64]
    """(A,) names of the spots of the reference volume; a spot has one name in both."""
    moving_names: NDArray[np.int64]
    """(B,) names of the spots of the moving volume's source."""

    @property
    def grid(self) -> Grid:
        """Where the voxels of both volumes are."""
        return self.reference_volume.grid

    @property
    def pull(self) -> PullMap:
        """Where a voxel of the moving volume comes from: ``x + d(x)``, moving to reference."""
        return self.moving_volume.pull

    def read_reference(self, window: Window) -> NDArray[Any]:
        """Compute a window of the reference."""
        return self.reference_volume.read(window)

    def read_moving(self, window: Window) -> NDArray[Any]:
        """Compute a window of the moving volume."""
        return self.moving_volume.read(window)

    @cached_property
    def reference(self) -> NDArray[np.uint8]:
        """The whole reference; it is kept."""
        return self.read_reference(self.grid.window)

    @cached_property
    def moving(self) -> NDArray[np.uint8]:
        """The whole moving volume; it is kept."""
        return self.read_moving(self.grid.window)

    @property
    def spots(self) -> NDArray[np.float64]:
        """(N, 3) centres of the spots that the reference shows."""
        return self._shown_reference[0]

    @property
    def moving_spots(self) -> NDArray[np.float64]:
        """(M, 3) centres of the spots that the moving volume shows, jitter included."""
        return self._shown_moving[0]

    @cached_property
    def pairs(self) -> NDArray[np.int64]:
        """(P, 2) rows of `spots` and `moving_spots` that are the same spot."""
        names = self._shown_reference[1], self._shown_moving[1]
        rows = np.intersect1d(*names, assume_unique=True, return_indices=True)[1:]
        return np.stack(rows, axis=1)

    @cached_property
    def _shown_reference(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres and names of the spots that the reference shows."""
        points = self.reference_volume.positions_index
        shown = self._inside(points)
        return points[shown], self.reference_names[shown]

    @cached_property
    def _shown_moving(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres and names of the spots that the moving volume shows."""
        points = self.moving_volume.source.positions_index
        moved = self.true_map(points)
        shown = self._inside(points) & self._inside(moved)
        return moved[shown], self.moving_names[shown]

    def true_map(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, 3) points reference to moving: the inverse of `pull`.

        NaN where nothing of the moving volume or its surroundings comes from there. Where `pull`
        folds, or a seam between fields of view shows a place twice, the result is one of several.
        """
        return self._inverse(points)

    def true_inverse(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, 3) points moving to reference: `pull`."""
        return self.pull(points)

    def visible(self, points: ArrayLike) -> NDArray[np.bool_]:
        """Tell which (N, 3) points of the reference lie inside the moving volume as well."""
        return self._inside(self.true_map(points))

    def _inside(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which (N, 3) points lie between the first and the last voxels; NaN does not."""
        last = np.asarray(self.grid.shape) - 1
        return np.asarray(((points >= 0) & (points <= last)).all(axis=1))

    @cached_property
    def _inverse(self) -> PullInverse:
        """The map reference to moving."""
        return PullInverse(pull=self.pull)


def benchmark_pair(
    volume: str | tuple[Sequence[int], int] = "medium",
    field: str = "polynomial_small",
    seed: int = 0,
    *,
    variant: BenchmarkVariant = PUBLISHED,
) -> BenchmarkPair:
    """Make a pair of volumes of the benchmark.

    Parameters
    ----------
    volume : str, or shape and number of spots
        A size of `BENCHMARK_VOLUMES`, or a size of one's own.
    field : str
        A deformation of `BENCHMARK_FIELDS`.
    seed : int
        Seed of the spots, the noise and the deformation.
    variant : BenchmarkVariant
        How the pair differs from the published ones. Default not at all.

    Raises
    ------
    InputError
        If a name is unknown, or a number out of range.

    Notes
    -----
    Voxels are computed where they are read, and no more memory is held than some hundred bytes a
    spot.

    Examples
    --------
    >>> pair = benchmark_pair("tiny", variant=BenchmarkVariant(drop_out=0.5))
    >>> pair.grid.shape, len(pair.spots)
    ((8, 128, 128), 5)
    """
    tissue = _make_tissue(volume, seed, variant)
    error = np.random.default_rng([seed, _JITTER]).normal(size=tissue.places.shape)
    reference, reference_names = tissue.image(
        np.zeros_like(error), missed=_MISSED_REFERENCE, false=_FALSE_REFERENCE, noise=_NOISE
    )
    source, moving_names = tissue.image(
        variant.jitter * error,
        missed=_MISSED_MOVING,
        false=_FALSE_MOVING,
        noise=_OWN_NOISE if variant.own_noise else _NOISE,
    )
    return BenchmarkPair(
        reference_volume=reference,
        moving_volume=PulledVolume(source=source, pull=tissue.pull(field)),
        reference_names=reference_names,
        moving_names=moving_names,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tissue:
    """The spots that both images of a pair may show; (N, 3) places, (N,) heights."""

    shape: tuple[int, ...]
    seed: int
    variant: BenchmarkVariant
    grid: Grid
    places: NDArray[np.float64]
    heights: NDArray[np.float64]

    def image(
        self, error: NDArray[np.float64], *, missed: int, false: int, noise: int
    ) -> tuple[SyntheticVolume, NDArray[np.int64]]:
        """Return an image of the tissue, undeformed, and the names of its spots.

        The places of spots are wrong by `error` (N, 3); streams decide which spots it misses,
        which false ones it shows, and its noise.
        """
        count = len(self.places)
        lots = np.random.default_rng([self.seed, missed]).uniform(size=count)
        seen = np.ones(count, dtype=np.bool_)
        # A larger drop-out misses the same spots and more, and exactly the share that is asked.
        seen[np.argsort(lots)[: round(self.variant.drop_out * count)]] = False
        others, other_heights = _scatter(
            self.shape, round(self.variant.spurious * count), (self.seed, false), self.variant
        )
        places = self._to_index(self.places) + error / self.grid.spacing
        ratio = self.variant.amplitude_to_noise
        volume = SyntheticVolume(
            grid=self.grid,
            positions_index=np.concatenate([places[seen], self._to_index(others)]),
            amplitudes=np.concatenate([self.heights[seen], other_heights]),
            sigma_voxels=tuple(_SIGMA / step for step in self.grid.spacing),
            background=_BACKGROUND,
            gradient=0.0,
            noise=_DEVIATION if ratio is None else _AMPLITUDE / ratio,
            seed=(self.seed, noise),
            dtype=np.dtype(np.uint8),
            truncated=True,
        )
        # Those of one image alone have names of their own, different in either image.
        names = [np.flatnonzero(seen), -false - 2 * np.arange(len(others))]
        return volume, np.concatenate(names)

    def _to_index(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return voxel indices of places: whole ones unless the variant is subpixel."""
        index = self.grid.to_index(places)
        if self.variant.subpixel:
            return index
        return np.asarray(np.minimum(np.rint(index), np.array(self.grid.shape) - 1))

    def pull(self, field: str) -> PullMap:
        """Return the map of a pair, moving to reference."""
        angle = math.radians(self.variant.rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])
        middle = (np.array(self.shape) - 1) / 2
        heading = np.random.default_rng([self.seed, _JUMPS]).uniform(0, 2 * np.pi, size=(2, 2))
        jumps = self.variant.jump * np.stack([np.sin(heading), np.cos(heading)], axis=-1)
        return PullMap(
            field=benchmark_field(field, self.shape, self.seed, size=self._size()),
            grid=self.grid,
            turn=turn,
            middle=middle - turn @ middle,
            jumps=jumps,
        )

    def _size(self) -> float | None:
        """Return the largest displacement in voxels, or None where the preset decides."""
        if self.variant.displacement is None:
            return None
        if len(self.places) < 2:
            raise InputError(
                "A displacement in spacings of the spots needs two spots; there is one. Use a "
                "larger volume or density."
            )
        nearest: NDArray[np.float64] = cKDTree(self.places).query(self.places, k=2)[0][:, 1]
        return self.variant.displacement * float(np.median(nearest))


def _make_tissue(
    volume: str | tuple[Sequence[int], int], seed: int, variant: BenchmarkVariant
) -> _Tissue:
    """Return the tissue of a pair, or say which number is out of range."""
    shape, num_spots = _size(volume)
    if seed < 0:
        raise InputError(f"Invalid seed {seed} of a benchmark pair. Use 0 or more.")
    grid = _grid(shape, variant.z_step)
    count = max(1, round(variant.density * num_spots))
    places, heights = _scatter(shape, count, (seed, _TISSUE), variant)
    return _Tissue(
        shape=shape, seed=seed, variant=variant, grid=grid, places=places, heights=heights
    )


def _size(volume: str | tuple[Sequence[int], int]) -> tuple[tuple[int, ...], int]:
    """Return the shape and the number of spots of a volume, or say what is wrong."""
    if isinstance(volume, str):
        if volume not in BENCHMARK_VOLUMES:
            raise InputError(f"Unknown volume '{volume}'. Known: {', '.join(BENCHMARK_VOLUMES)}.")
        return BENCHMARK_VOLUMES[volume]
    shape, num_spots = tuple(int(n) for n in volume[0]), int(volume[1])
    least = tuple(2 * m + 1 for m in _MARGIN)
    if len(shape) != 3 or any(n < m for n, m in zip(shape, least, strict=True)) or num_spots < 1:
        raise InputError(
            f"Invalid volume of shape {shape} with {num_spots} spots. It needs at least {least} "
            "voxels and one spot."
        )
    return shape, num_spots


def _grid(shape: tuple[int, ...], z_step: float) -> Grid:
    """Return the grid whose planes lie at whole z steps in a tissue of this shape."""
    # A step that divides the tissue must not make a plane more by rounding.
    num_planes = math.ceil(shape[0] / z_step - 1e-9)
    if num_planes < 2:
        raise InputError(
            f"A z step of {z_step} leaves {num_planes} plane of a tissue of shape {shape}. Use "
            "a smaller step or a thicker volume: two planes are needed."
        )
    return Grid(shape=(num_planes, *shape[1:]), spacing=(z_step, 1.0, 1.0))


def _scatter(
    shape: Sequence[int], count: int, key: tuple[int, int], variant: BenchmarkVariant
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (N, 3) places of spots in the tissue and their heights; more extend fewer."""
    place, offset, height = (np.random.default_rng([*key, k]) for k in (1, 2, 3))
    margin = np.array(_MARGIN)
    spots = place.integers(margin, np.array(shape) - margin, size=(count, 3)).astype(np.float64)
    if variant.subpixel:
        spots += offset.uniform(-0.5, 0.5, size=spots.shape)
    return spots, height.integers(*_HEIGHTS, size=count).astype(np.float64)
