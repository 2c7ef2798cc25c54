"""Pairs to register, the spots that are found in them, and the truth that judges the result."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.benchmark_variants import PUBLISHED
from tilereg.lazy.detect import detect_spots
from tilereg.metrics import inside_hull
from tilereg.points import Spots
from tilereg.synthetic import BENCHMARK_VOLUMES, BenchmarkPair, BenchmarkVariant, benchmark_pair

Floats = NDArray[np.float64]
Volume = str | tuple[tuple[int, int, int], int]

# Distance of the grid points that judge a field, in voxels.
_GRID_STEP = (4, 16, 16)
_NEAR = 1.5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pair of volumes, by name."""

    volume: Volume
    """A named size, or a shape and a number of spots."""
    field: str
    """Preset of the deformation."""
    seed: int
    variant: BenchmarkVariant = PUBLISHED
    """How it differs from the published pair."""

    @property
    def key(self) -> str:
        """The same text for the same pair."""
        changed = {k: v for k, v in asdict(self.variant).items() if v != getattr(PUBLISHED, k)}
        size = self.volume if isinstance(self.volume, str) else list(self.volume)
        return json.dumps([size, self.field, self.seed, changed], sort_keys=True)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the volume before anisotropy."""
        return BENCHMARK_VOLUMES[self.volume][0] if isinstance(self.volume, str) else self.volume[0]

    def make(self) -> BenchmarkPair:
        """Make the pair; its voxels are computed when they are first asked for."""
        return benchmark_pair(self.volume, self.field, self.seed, variant=self.variant)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work took."""

    seconds: float
    cpu_seconds: float


class Stopwatch:
    """Measures wall and CPU seconds of this process, its threads and its finished children."""

    def __init__(self) -> None:
        """Start."""
        self._start = time.perf_counter(), _cpu_seconds()

    @property
    def cost(self) -> Cost:
        """What has passed since the start."""
        wall, cpu = self._start
        return Cost(seconds=time.perf_counter() - wall, cpu_seconds=_cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The spots that tilereg finds in both images, in the world: every point method gets these."""

    fixed: Spots
    moving: Spots
    cost: Cost

    @classmethod
    def of(cls, pair: BenchmarkPair) -> Detections:
        """Detect with default settings."""
        images = pair.reference, pair.moving
        clock = Stopwatch()
        fixed, moving = (detect_spots(image, pair.grid) for image in images)
        return cls(fixed=fixed, moving=moving, cost=clock.cost)

    @classmethod
    def without_images(cls, pair: BenchmarkPair, noise: float) -> Detections:
        """Take the true spots with Gaussian noise in voxels instead of looking for them."""
        # Of the pair itself: another seed has another noise.
        marks = np.concatenate([pair.spots.sum(axis=0), pair.moving_spots.sum(axis=0)])
        rng = np.random.default_rng(np.abs(1000 * marks).astype(np.int64))
        clouds = [
            _as_spots((points + rng.normal(0, noise, points.shape)) * pair.grid.spacing, noise)
            for points in (pair.spots, pair.moving_spots)
        ]
        return cls(fixed=clouds[0], moving=clouds[1], cost=Cost(seconds=0.0, cpu_seconds=0.0))


def _as_spots(positions: Floats, localisation: float) -> Spots:
    """Return spots at given places."""
    ones = np.ones(len(positions))
    return Spots(
        positions=positions,
        sigma=1.5 * ones,
        intensity=200 * ones,
        response=200 * ones,
        localisation=localisation * ones,
        chunk=np.zeros(len(positions), dtype=np.int64),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Points of the reference, in voxels, where a map is judged, and where they belong."""

    points: Floats
    """(K, 3) visible points: the reference's spots, then a regular grid."""
    true: Floats
    """(K, 3) where the true map puts them."""
    is_spot: NDArray[np.bool_]
    """(K,) whether a point is a spot; else it is of the grid."""
    is_inside: NDArray[np.bool_]
    """(K,) whether it lies in the hull of the spots that both images show."""
    is_shared: NDArray[np.bool_]
    """(K,) whether it is a spot that both images show."""
    fold_share: float
    """Share of the grid of the moving image where the true pull field folds."""

    @classmethod
    def of(cls, pair: BenchmarkPair) -> Truth:
        """Work out where a pair is judged."""
        shape = pair.grid.shape
        steps = zip(_GRID_STEP, shape, strict=True)
        axes = [np.arange(min(s // 2, n // 2), n, s) for s, n in steps]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
        points = np.concatenate([pair.spots, grid])
        shared = np.zeros(len(points), dtype=bool)
        shared[pair.pairs[:, 0]] = True
        true = pair.true_map(points)
        visible = ((true >= 0) & (true <= np.array(shape) - 1)).all(axis=1)
        hull = pair.spots[pair.pairs[:, 0]]
        inside = inside_hull(points, hull) if len(hull) else np.zeros(len(points), dtype=bool)
        determinant = np.linalg.det(pair.pull.jacobian(grid))
        return cls(
            points=points[visible],
            true=true[visible],
            is_spot=(np.arange(len(points)) < len(pair.spots))[visible],
            is_inside=inside[visible],
            is_shared=shared[visible],
            fold_share=float((determinant <= 0).mean()),
        )


def describe_detections(pair: BenchmarkPair, found: Detections) -> dict[str, Any]:
    """Say how many spots were found, how many of them are real, and how far off they are."""
    rows = {}
    for name, spots, true in (
        ("fixed", found.fixed, pair.spots),
        ("moving", found.moving, pair.moving_spots),
    ):
        ours, theirs = nearest_pairs(spots.positions / pair.grid.spacing, true, _NEAR)
        gap = spots.positions[ours] / pair.grid.spacing - true[theirs]
        rows[name] = {
            "found": len(spots),
            "true": len(true),
            "recall": len(ours) / max(1, len(true)),
            "precision": len(ours) / max(1, len(spots)),
            "error_an_axis": float(np.sqrt((gap**2).mean())) if len(gap) else None,
        }
    return rows


def nearest_pairs(a: Floats, b: Floats, reach: float) -> tuple[NDArray[np.int64], ...]:
    """Return the rows of mutual nearest neighbours within `reach`."""
    from scipy.spatial import cKDTree

    if min(len(a), len(b)) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    distance, theirs = cKDTree(b).query(a)
    back = cKDTree(a).query(b)[1]
    ours = np.flatnonzero((distance <= reach) & (back[theirs] == np.arange(len(a))))
    return ours.astype(np.int64), theirs[ours].astype(np.int64)
