"""The process that a method runs in: it owns its memory, its CPU time and its warm-up."""

from __future__ import annotations

import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.cases import Case, Detections, Floats, Stopwatch
from benchmarks.memory import peak_memory, reset_peak
from benchmarks.methods import METHODS
from benchmarks.methods.scene import PointMap, Recovered, Scene, Unavailable
from tilereg.grid import Grid
from tilereg.lattice import Lattice
from tilereg.transform import Affine, Transform
from tilereg.warping import warp_array

WARM_UP = Case(volume=((16, 128, 128), 60), field="polynomial_small", seed=0)
"""What every method registers first, so that imports and compilation do not count."""

_NODE_STEP = 4.0  # voxels between the places where a map is evaluated to warp an image


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A pair to register."""

    case: Case
    images: tuple[Path, Path] | None
    """Files of the reference and the moving image; None if nobody looks at images."""
    detections: Detections
    points: Floats
    """(K, 3) voxels of the reference where the map is wanted."""
    wants_image: bool

    def scene(self) -> Scene:
        """Load what the method gets."""
        nothing = np.empty((0, 0, 0), dtype=np.uint8)
        images = [nothing] * 2 if self.images is None else [np.load(p) for p in self.images]
        pair = self.case.make()
        return Scene(
            pair=pair,
            reference=images[0],
            moving=images[1],
            fixed_spots=self.detections.fixed,
            moving_spots=self.detections.moving,
            spacing=np.asarray(pair.grid.spacing),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Reply:
    """What a method made of a job."""

    status: str
    """'ok', 'no registration', 'few spots', 'unavailable' or 'failed'."""
    reason: str = ""
    predicted: Floats | None = None
    """(K, 3) voxels where the map puts ``job.points``."""
    image: NDArray[Any] | None = None
    seconds: float = 0.0
    """Wall time of the method, without detection, the registered image included if asked for."""
    cpu_seconds: float = 0.0
    warp_seconds: float = 0.0
    """The part of it that made the image from the map."""
    memory_bytes: int = 0
    """Peak memory above what the process held before: the two images are not in it."""
    details: dict[str, Any] | None = None


def serve(connection: Connection, method: str) -> None:
    """Warm up, say so, then do jobs until told to stop."""
    connection.send(_warm_up(method))
    # The other side closes the connection where it has no use for this process any more.
    with suppress(EOFError, BrokenPipeError):
        while (job := connection.recv()) is not None:
            connection.send(_attempt(method, job))


def _warm_up(method: str) -> Reply:
    """Register a small pair; a method that cannot run at all says why."""
    pair = WARM_UP.make()
    job = Job(
        case=WARM_UP,
        images=None,
        detections=Detections.of(pair),
        points=pair.spots,
        wants_image=False,
    )
    scene = job.scene()
    with_images = Scene(**{**vars(scene), "reference": pair.reference, "moving": pair.moving})
    return _attempt(method, Job(**{**vars(job), "wants_image": True}), with_images)


def _attempt(method: str, job: Job, scene: Scene | None = None) -> Reply:
    """Do a job; whatever goes wrong becomes a status with its reason."""
    try:
        return _do(method, job, job.scene() if scene is None else scene)
    except ImportError as error:
        hint = "the other methods are in pip install '.[bench]'"
        return Reply(status="unavailable", reason=f"{error}: {hint}")
    except Unavailable as error:
        return Reply(status="unavailable", reason=str(error))
    # A benchmark reports the failures of others, of whatever kind they are.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return Reply(status="failed", reason=f"{type(error).__name__}: {error} ({where})")


def _do(method: str, job: Job, scene: Scene) -> Reply:
    """Measure the method, and evaluate its map where it is judged."""
    register = METHODS[method].load()
    before = reset_peak()
    clock = Stopwatch()
    found = register(scene)
    image, warp = found.image, 0.0
    if job.wants_image and image is None:
        at = clock.cost.seconds
        image = registered_image(found.map, scene.moving, scene.spacing)
        warp = clock.cost.seconds - at
    cost = clock.cost
    memory = max(0, peak_memory() - before)
    predicted = np.asarray(found.map(job.points * scene.spacing)) / scene.spacing
    return Reply(
        status=found.status if np.isfinite(predicted).all() else "failed",
        reason="" if np.isfinite(predicted).all() else "The map is not finite everywhere.",
        predicted=predicted,
        image=image if job.wants_image else None,
        seconds=cost.seconds,
        cpu_seconds=cost.cpu_seconds,
        warp_seconds=warp,
        memory_bytes=memory,
        details=found.details,
    )


def registered_image(map_: PointMap, moving: NDArray[Any], spacing: Floats) -> NDArray[Any]:
    """Warp an image with a map that is evaluated every four voxels.

    Between them the displacement is a cubic spline, which is far below a hundredth of a voxel for
    fields as smooth as those of the benchmark. Where a map has no answer, it gets that of the
    nearest place that has one.
    """
    grid = Grid(shape=moving.shape, spacing=tuple(spacing.tolist()))
    low, high = grid.bounds
    lattice = Lattice.cover(low, high, _NODE_STEP)
    axes = [
        o + s * np.arange(n)
        for o, s, n in zip(lattice.origin, lattice.spacing, lattice.nodes, strict=True)
    ]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    values = (map_(nodes) - nodes).reshape(*lattice.nodes, 3)
    missing = ~np.isfinite(values).all(axis=-1)
    if missing.any():
        nearest = ndimage.distance_transform_edt(
            missing, return_distances=False, return_indices=True
        )
        values = values[tuple(nearest)]
    for axis in range(3):
        values = ndimage.spline_filter1d(values, 3, axis=axis, mode="mirror")
    transform = Transform(Affine.identity(3), lattice.field(np.ascontiguousarray(values)))
    return warp_array(moving, transform, like=grid, grid=grid)


__all__ = ["WARM_UP", "Job", "Recovered", "Reply", "registered_image", "serve"]
