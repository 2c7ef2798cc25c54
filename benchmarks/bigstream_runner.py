"""bigstream on one pair of images: run inside an environment that has bigstream and not tilereg.

    python bigstream_runner.py register JOB.json
    python bigstream_runner.py points JOB.json

A job names two zarr arrays, their spacings, the steps of both alignments and a folder. `register`
does what bigstream's ``easifish_registration_pipeline`` does: a global affine in memory, then
overlapping blocks on a local Dask cluster, then the moving image resampled; it leaves
``affine.mat``, ``deform.zarr``, ``registered.zarr`` and ``report.json``. `points` maps what is in
``points.npy`` by both transforms, and says which voxels of the fixed grid they leave inside the
moving image.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

_STEPS = "steps.jsonl"
_PACKAGES = ("bigstream", "SimpleITK", "numpy", "scipy", "zarr", "dask", "opencv-python-headless")
_TUPLES = ("cc_radius", "smooth_sigmas", "shrink_factors", "control_point_levels")


def watch_steps(path: str) -> None:
    """Make this process note for each alignment whether it gave up.

    Where bigstream finds too few spots or matches, or an optimiser does not improve its metric, it
    goes on with the identity and says so in a log alone.
    """
    from bigstream import align

    names = {
        "ransac": "feature_point_ransac_affine_align",
        "affine": "affine_align",
        "deform": "deformable_align",
    }

    def watched(step: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found = function(*arguments, **options)
            # A deformation is its parameters and its field.
            is_default = (
                not np.any(found[1]) if step == "deform" else np.array_equal(found, np.eye(4))
            )
            line = {"step": step, "block": options.get("context", ""), "failed": bool(is_default)}
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
            return found

        return call

    for step, name in names.items():
        setattr(align, name, watched(step, getattr(align, name)))


def _options(steps: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return steps as bigstream takes them: JSON knows no tuples."""
    return [
        (name, {k: tuple(v) if k in _TUPLES else v for k, v in options.items()})
        for name, options in steps
    ]


def _open(side: dict[str, Any]) -> tuple[Any, Any]:
    """Return an array on disk and its spacing."""
    return zarr.open(side["path"], mode="r"), np.array(side["spacing"], dtype=float)


def register(job: dict[str, Any]) -> None:
    """Align and resample, and report how long each part took."""
    clock = _Clock()
    from ClusterWrap.clusters import local_cluster

    clock.lap("import")
    folder = Path(job["folder"])
    steps = str(folder / _STEPS)
    # ClusterWrap writes Dask's configuration below the home folder.
    (Path.home() / ".config/dask").mkdir(parents=True, exist_ok=True)
    watch_steps(steps)
    os.environ["ITK_THREADS"] = str(job["workers"])
    affine = align_globally(job)
    np.savetxt(folder / "affine.mat", affine)
    clock.lap("global affine")
    # One thread a worker: both cores are taken already.
    os.environ |= dict.fromkeys(("ITK_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    cluster = local_cluster(
        n_workers=job["workers"], threads_per_worker=1, memory_limit=0, dashboard_address=":0"
    )
    with cluster:
        cluster.client.run(watch_steps, steps)
        deform = align_blocks(job, affine, cluster)
        clock.lap("local blocks")
        resample(job, [affine, deform], cluster)
        clock.lap("resample")
    shape = _open(job["fixed"])[0].shape
    report = {
        "seconds": clock.seconds,
        "blocks": int(np.prod(np.ceil(np.array(shape) / job["blocksize"]))),
        "failed": _failures(folder / _STEPS),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))


def align_globally(job: dict[str, Any]) -> Any:
    """Return the (4, 4) affine of the whole images, in memory."""
    from bigstream.align import alignment_pipeline

    (fixed, fixed_spacing), (moving, moving_spacing) = _open(job["fixed"]), _open(job["moving"])
    # A RANSAC that fails returns the identity, as in blocks, and is counted.
    steps = [
        (name, {**options, "safeguard_exceptions": False} if name == "ransac" else options)
        for name, options in _options(job["global_steps"])
    ]
    return alignment_pipeline(fixed[...], moving[...], fixed_spacing, moving_spacing, steps)


def align_blocks(job: dict[str, Any], affine: Any, cluster: Any) -> Any:
    """Return the displacement field, on disk."""
    from bigstream.piecewise_align import distributed_piecewise_alignment_pipeline

    (fixed, fixed_spacing), (moving, moving_spacing) = _open(job["fixed"]), _open(job["moving"])
    return distributed_piecewise_alignment_pipeline(
        fixed,
        moving,
        fixed_spacing,
        moving_spacing,
        steps=_options(job["local_steps"]),
        blocksize=job["blocksize"],
        static_transform_list=[affine],
        write_path=str(Path(job["folder"]) / "deform.zarr"),
        temporary_directory=job["folder"],
        cluster=cluster,
    )


def resample(job: dict[str, Any], transforms: list[Any], cluster: Any) -> None:
    """Write the moving image on the fixed grid."""
    from bigstream.piecewise_transform import distributed_apply_transform

    (fixed, fixed_spacing), (moving, moving_spacing) = _open(job["fixed"]), _open(job["moving"])
    distributed_apply_transform(
        fixed,
        moving,
        fixed_spacing,
        moving_spacing,
        transform_list=transforms,
        blocksize=job["blocksize"],
        write_path=str(Path(job["folder"]) / "registered.zarr"),
        temporary_directory=job["folder"],
        cluster=cluster,
    )


class _Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        """Start."""
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _version(name: str) -> str | None:
    """Return the version of a package, if it is installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def _failures(path: Path) -> dict[str, int]:
    """Count the alignments that gave up, the global ones and those of blocks apart."""
    counts: dict[str, int] = {}
    for line in path.read_text().splitlines():
        note = json.loads(line)
        key = f"{'block' if note['block'] else 'global'} {note['step']}"
        counts[key] = counts.get(key, 0) + note["failed"]
    return counts


def points(job: dict[str, Any]) -> None:
    """Map points by bigstream's own function, and warp an image of ones."""
    from bigstream.transform import apply_transform, apply_transform_to_coordinates

    folder = Path(job["folder"])
    (fixed, fixed_spacing), (moving, moving_spacing) = _open(job["fixed"]), _open(job["moving"])
    affine = np.loadtxt(folder / "affine.mat")
    deform = zarr.open(str(folder / "deform.zarr"), mode="r")[...]
    asked = np.load(folder / "points.npy")
    mapped = apply_transform_to_coordinates(asked.copy(), [affine, deform], fixed_spacing)
    np.save(folder / "mapped.npy", mapped)
    inside = apply_transform(
        fixed.shape,
        np.ones(moving.shape, dtype=np.uint8),
        fixed_spacing,
        moving_spacing,
        transform_list=[affine, deform],
        interpolator="0",
    )
    np.save(folder / "inside.npy", inside > 0)


def main() -> None:
    """Do what the command line asks for."""
    job = json.loads(Path(sys.argv[2]).read_text())
    {"register": register, "points": points}[sys.argv[1]](job)


if __name__ == "__main__":
    main()
