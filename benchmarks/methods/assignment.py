"""Optimal one-to-one assignment with a cost of not matching."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from benchmarks.methods.neighbours import robust_affine
from benchmarks.methods.scene import Recovered, Scene
from benchmarks.splines import fit_robust_spline, spacing_of

_MOST_BYTES = 4e9


def transport(scene: Scene) -> Recovered:
    """Assign the spots after a robust affine; a pair costs its squared distance.

    Not matching costs as much as a distance of one mean spacing.
    """
    needed = 16.0 * len(scene.fixed) * len(scene.moved)
    if needed > _MOST_BYTES:
        raise MemoryError(f"The cost matrices would take {needed / 1e9:.1f} GB.")
    moved = robust_affine(scene.fixed, scene.moved)(scene.fixed)
    limit = spacing_of(scene.fixed)
    cost = cdist(moved, scene.moved, "sqeuclidean")
    # A pair dearer than not matching is as good as none: capped, then left out.
    ours, theirs = linear_sum_assignment(np.minimum(cost, limit**2))
    near = cost[ours, theirs] < limit**2
    map_, kept = fit_robust_spline(scene.fixed[ours[near]], scene.moved[theirs[near]])
    return Recovered(map=map_, details={"pairs": int(kept.sum())})
