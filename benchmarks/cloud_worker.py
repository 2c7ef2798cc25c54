"""One method on one pair of clouds, in a process of its own: its time and its memory.

    python -m benchmarks.cloud_worker JOB.npz METHOD ANSWER.npz

The job holds the clouds, and the fixed one as the true affine brings it to the moving one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Floats, Stopwatch
from benchmarks.memory import peak_memory, reset_peak
from benchmarks.methods.drift import fit_biocpd, fit_probreg, fit_pycpd
from benchmarks.methods.scene import Unavailable
from benchmarks.spot_clouds import CloudSpec, make_clouds
from tilereg.errors import InputError
from tilereg.lazy.match import match_sources
from tilereg.matching import METHODS as ENGINE_NAMES
from tilereg.matching import match_spots
from tilereg.points import Spots
from tilereg.spot_source import ArraySource
from tilereg.transform import Transform

Answer = tuple[Floats | Transform, dict[str, Any]]

# For these clouds: of widths of 75 to 400 voxels, weights of 0.1 to 100 and outlier shares of 0.1
# to 0.6 those with the least error of biocpd at 2,000 and 10,000 spots together.
_WIDTH, _ALPHA, _W = 300.0, 30.0, 0.3
_WARM_UP = 1500
_A_TILE = 200_000


def tilereg(fixed: Floats, _aligned: Floats, moving: Floats) -> Answer:
    """Match with default settings."""
    match = match_spots(fixed, moving)
    return match.transform, {"status": match.status, "pairs": len(match.correspondences)}


def biocpd(_fixed: Floats, aligned: Floats, moving: Floats, **settings: Any) -> Answer:
    """Run biocpd's deformable drift from the true affine: its own step is transposed (1.3.0).

    With the fastest of its low-rank methods, which is not its default, unless settings say other.
    """
    width = _WIDTH / float(moving.std(axis=0).max())
    unit, _, drift = fit_biocpd(aligned, moving, beta=width, alpha=_ALPHA, w=_W, **settings)
    return unit.back(np.asarray(drift.TY)), {"iterations": int(drift.iteration)}


def tiles(fixed: Floats, _aligned: Floats, moving: Floats) -> Answer:
    """Match tile by tile, in this process alone."""
    sources = (ArraySource(Spots.at(cloud)) for cloud in (fixed, moving))
    match = match_sources(*sources, tile_spots=_A_TILE, num_workers=1)
    return match.transform, {"status": match.status, "pairs": len(match.correspondences)}


def pycpd(fixed: Floats, _aligned: Floats, moving: Floats) -> Answer:
    """Run pycpd's affine and deformable registration."""
    width = _WIDTH / float(fixed.std(axis=0).max())
    unit, _, _, drift = fit_pycpd(fixed, moving, beta=width, alpha=_ALPHA, w=_W)
    return unit.back(np.asarray(drift.TY)), {"iterations": int(drift.iteration)}


def probreg(fixed: Floats, _aligned: Floats, moving: Floats) -> Answer:
    """Run probreg's CPD, affine then nonrigid."""
    width = _WIDTH / float(fixed.std(axis=0).max())
    unit, _, moved, fine = fit_probreg(fixed, moving, beta=width, lmd=_ALPHA, w=_W)
    return unit.back(np.asarray(fine.transform(moved))), {}


def _engine(name: str) -> Callable[[Floats, Floats, Floats], Answer]:
    """Return tilereg with another of its engines and default settings."""

    def register(fixed: Floats, _aligned: Floats, moving: Floats) -> Answer:
        try:
            match = match_spots(fixed, moving, method=name)
        except InputError as error:  # The extra that it needs is not there.
            raise Unavailable(str(error)) from error
        return match.transform, {"status": match.status, "pairs": len(match.correspondences)}

    return register


PEERS: dict[str, Callable[[Floats, Floats, Floats], Answer]] = {
    "tilereg": tilereg,
    "biocpd": biocpd,
    "pycpd": pycpd,
    "probreg": probreg,
}
ENGINES = {f"tilereg:{name}": _engine(name) for name in ENGINE_NAMES if name != "cpd"}
"""The other engines of tilereg; 'tilereg' itself is `cpd`."""

VARIANTS: dict[str, Callable[[Floats, Floats, Floats], Answer]] = {
    "biocpd:default rank": partial(biocpd, low_rank_method="randomized_svd"),
    "biocpd:1000": partial(biocpd, num_eig=1000),
    "tilereg:tiles": tiles,
}
"""Other ways to run some of them, on some of the clouds."""

METHODS = PEERS | VARIANTS | ENGINES


def main() -> None:
    """Warm up on a few spots, register, and leave the fixed spots where the method puts them."""
    job = np.load(sys.argv[1])
    clouds = job["fixed"], job["aligned"], job["moving"]
    method, answer = METHODS[sys.argv[2]], Path(sys.argv[3])
    try:
        small = make_clouds(CloudSpec(_WARM_UP))
        method(small.fixed, small.map.affine(small.fixed), small.moving)
    except Unavailable as error:
        np.savez(answer, unavailable=str(error))
        return
    before = reset_peak()
    clock = Stopwatch()
    found, details = method(*clouds)
    cost = clock.cost
    memory = peak_memory() - before
    moved = found(clouds[0]) if isinstance(found, Transform) else found
    figures = {"seconds": cost.seconds, "cpu_seconds": cost.cpu_seconds, "memory_bytes": memory}
    np.savez(answer, moved=moved, **figures, **details)


if __name__ == "__main__":
    main()
