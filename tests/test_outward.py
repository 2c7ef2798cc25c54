from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.spot_clouds import CloudSpec, SpotClouds, make_clouds
from tests.clouds import make_problem
from tilereg import match_spots
from tilereg.lattice import Lattice
from tilereg.matching.cells import CellList
from tilereg.matching.coarse import Coarse
from tilereg.matching.outward import extend_pose
from tilereg.matching.votes import VOTE_CELL, Ballot
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField

Floats = NDArray[np.float64]

PRIOR = Coherent(16.0, 1.0)


@pytest.fixture(scope="module")
def bent() -> SpotClouds:
    """Spots that the bumps move by up to 40 voxels, more than three distances of neighbours."""
    return make_clouds(CloudSpec(4000, bump=40.0, width=100.0, depth=60.0))


def test_bends_beyond_the_reach_of_votes_are_followed(bent: SpotClouds) -> None:
    match = match_spots(bent.fixed, bent.moving)
    error = np.linalg.norm(match.transform(bent.fixed) - bent.map(bent.fixed), axis=1)
    assert match.is_ok
    # Where spots agree on the first pose alone, a tenth of them is off by several voxels.
    assert np.percentile(error, 99) < 1.0


def test_blocks_that_disagree_vote_again_from_where_others_lead(bent: SpotClouds) -> None:
    unit = bent.spec.nearest
    fixed, moving = bent.fixed / unit, bent.moving / unit
    truth = bent.map(bent.fixed) / unit
    pose = bent.map.affine(bent.fixed) / unit
    ballot = Ballot(fixed, CellList.build(moving, VOTE_CELL))
    lattice = Lattice.cover(fixed.min(axis=0), fixed.max(axis=0), PRIOR.spacing)

    def predict(field: DisplacementField | None) -> Floats:
        return pose if field is None else pose + field(fixed)

    shift = np.linalg.norm(truth - pose, axis=1)
    assert np.percentile(shift, 90) > 2
    miss = np.linalg.norm(predict(ballot.hold(lattice, PRIOR, predict)) - truth, axis=1)
    assert np.percentile(miss, 90) < 0.5


def test_a_pose_of_a_corner_is_extended_over_the_cloud() -> None:
    clouds = make_clouds(CloudSpec(20_000, bump=25.0, width=100.0))
    unit = clouds.spec.nearest
    fixed, moving = clouds.fixed / unit, clouds.moving / unit
    problem = make_problem(fixed, moving, np.zeros(len(fixed), dtype=bool))
    corner = int(np.argmin(fixed.sum(axis=1)))
    near = np.argsort(np.linalg.norm(fixed - fixed[corner], axis=1))[:600]
    truth = clouds.map(clouds.fixed) / unit
    local = _fit(fixed[near], truth[near])
    pose = Coarse(local, -50.0, "vote", 1, len(near) / len(fixed), corner)
    found = extend_pose(problem, pose)
    assert found.coverage == 1
    usual, best = (
        np.linalg.norm(map_(fixed) - truth, axis=1) for map_ in (local, _fit(fixed, truth))
    )
    miss = np.linalg.norm(found.affine(fixed) - truth, axis=1)
    assert np.median(usual) > 3
    assert np.median(miss) < 1.5 * np.median(best)


def test_a_pose_among_strangers_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    fixed, moving = rng.uniform(0, 12, (2, 2000, 3))
    problem = make_problem(fixed, moving, np.zeros(len(fixed), dtype=bool))
    pose = Coarse(Affine.identity(3), -20.0, "vote", 1, 0.1, 5)
    assert extend_pose(problem, pose) is pose
    whole = replace(pose, coverage=1.0)
    assert extend_pose(problem, whole) is whole


def _fit(source: Floats, target: Floats) -> Affine:
    """Fit an affine map with what scipy has."""
    design = np.column_stack([source, np.ones(len(source))])
    found = np.linalg.lstsq(design, target, rcond=None)[0]
    return Affine(found[:-1].T, found[-1])
