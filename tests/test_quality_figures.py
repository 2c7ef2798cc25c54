"""The figures of qc.json, by hand and against whole arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tilereg import Affine, DisplacementField, Grid, Spots, Transform
from tilereg.metrics import ncc
from tilereg.points import Correspondences
from tilereg.quality import (
    correlation,
    describe_field,
    describe_regions,
    describe_residuals,
    describe_support,
    list_warnings,
)
from tilereg.spots import ArrayReader
from tilereg.warping import warp_array


def _spots(positions: np.ndarray, localisation: float) -> Spots:
    count = len(positions)
    column = np.ones(count)
    return Spots(
        positions=positions,
        sigma=column,
        intensity=column,
        response=column,
        localisation=np.full(count, localisation),
        chunk=np.zeros(count, dtype=np.int64),
    )


def _pairs(fixed: np.ndarray, moving: np.ndarray, held_out: np.ndarray) -> Correspondences:
    rows = np.arange(len(fixed))
    return Correspondences(
        fixed=fixed,
        moving=moving,
        fixed_index=rows,
        moving_index=rows,
        weight=np.ones(len(fixed)),
        residual=np.linalg.norm(fixed - moving, axis=1),
        held_out=held_out,
        tile=np.zeros(len(fixed), dtype=np.int64),
    )


def test_residuals_by_hand() -> None:
    fixed = np.zeros((4, 3))
    moving = np.array([[2.0, 0, 0], [0, 4.0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    held_out = np.array([True, True, False, False])
    figures = describe_residuals(
        _pairs(fixed, moving, held_out),
        Transform.identity(3),
        Transform.identity(3),
        _spots(fixed, 0.3),
        _spots(moving, 0.4),
        np.array([1.0, 2.0, 2.0]),
    )
    assert figures["held_out"]["count"] == 2
    assert figures["held_out"]["median_um"] == pytest.approx(3.0)
    assert figures["held_out"]["median_voxel"] == pytest.approx(2.0)
    assert figures["fitted"]["median_um"] == pytest.approx(1.0)
    assert figures["floor_um"] == pytest.approx(0.5 * 1.5382, rel=1e-3)


def test_held_out_pairs_judge_the_map_that_has_not_seen_them() -> None:
    points = np.zeros((4, 2))
    held_out = np.array([True, True, False, False])
    judge = Transform(Affine(np.eye(2), np.array([3.0, 4.0])))
    spots = _spots(points, 0.1)
    figures = describe_residuals(
        _pairs(points, points, held_out), Transform.identity(2), judge, spots, spots, np.ones(2)
    )
    assert figures["held_out"]["median_um"] == pytest.approx(5.0)
    assert figures["fitted"]["median_um"] == 0.0


def test_unknown_localisation_has_no_floor() -> None:
    points = np.zeros((2, 2))
    spots = _spots(points, np.nan)
    figures = describe_residuals(
        _pairs(points, points, np.array([True, False])),
        Transform.identity(2),
        Transform.identity(2),
        spots,
        spots,
        np.ones(2),
    )
    assert figures["floor_um"] is None
    assert figures["excess_um"] is None


def test_folds_are_counted() -> None:
    coefficients = np.zeros((12, 12, 2))
    coefficients[6:, :, 0] = -60.0
    field = DisplacementField(coefficients, np.full(2, -10.0), np.full(2, 10.0))
    grid = Grid(shape=(90, 90))
    folded = describe_field(Transform(Affine.identity(2), field), grid)
    assert 0.05 < folded["fold_share"] < 0.5
    assert folded["jacobian_min"] < 0
    assert describe_field(Transform.identity(2), grid)["fold_share"] == 0


@pytest.mark.parametrize("shape", [(40, 150, 170), (600, 700)])
def test_correlation_is_that_of_the_whole(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.poisson(5, shape).astype(np.uint16)
    moving = np.roll(fixed, 3, axis=-1)
    offset = np.zeros(len(shape))
    offset[-1] = 3.0
    transform = Transform(Affine(np.eye(len(shape)), offset))
    grid = Grid(shape=shape)
    figures = correlation(ArrayReader(fixed), grid, ArrayReader(moving), grid, transform)
    warped = warp_array(moving, transform, like=grid, grid=grid)
    mask = warp_array(np.ones(shape, np.uint8), transform, like=grid, grid=grid, order=0) > 0
    assert figures["after"] == pytest.approx(ncc(fixed, warped, mask))
    assert figures["after"] > 0.99
    assert figures["before"] == pytest.approx(ncc(fixed, moving, mask), abs=1e-6)
    assert figures["voxels"] == mask.sum()


def test_regions_without_partners_are_found() -> None:
    points = np.random.default_rng(1).uniform(0, 100, (1000, 3))
    has_partner = np.random.default_rng(2).random(1000) < 0.8
    calm = describe_regions(points, has_partner, 0.8, 0.02)
    assert calm["without_support"] == []
    has_partner[points[:, 2] < 25] = False
    share = float(has_partner.mean())
    lost = describe_regions(points, has_partner, share, 0.02)
    assert lost["without_support"]
    assert all(region["low_um"][2] < 25 for region in lost["without_support"])


def test_warnings_name_what_is_wrong() -> None:
    points = np.random.default_rng(3).uniform(0, 100, (400, 2))
    near = np.flatnonzero(points[:, 0] > 30)
    pairs = Correspondences(
        fixed=points[near],
        moving=points[near],
        fixed_index=near,
        moving_index=near,
        weight=np.ones(len(near)),
        residual=np.zeros(len(near)),
        held_out=np.zeros(len(near), dtype=bool),
        tile=np.zeros(len(near), dtype=np.int64),
    )
    grid = Grid(shape=(100, 100))
    support = describe_support(_spots(points, 0.1), pairs, Transform.identity(2), grid, 0.01)
    field = describe_field(Transform.identity(2), grid)
    lines = list_warnings(field, support)
    assert len(lines) == 1
    assert "hardly have partners" in lines[0]
    seam = {"image": "moving", "axis": "y", "position_um": 12.0, "largest_um": 3.0}
    named, *rest = list_warnings(field, support, [seam])
    assert "moving" in named
    assert "y = 12 um" in named
    assert rest == lines
    assert json.dumps(support)
