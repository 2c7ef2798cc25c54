"""Least squares between paired points: exact maps come back, weights and priors hold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tilereg.affine import fit_affine, fit_rigid, fit_translation, num_parameters
from tilereg.transform import Affine

Floats = NDArray[np.float64]


def turn(ndim: int, degrees: float) -> Floats:
    if ndim == 2:
        return np.asarray(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2])
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    return np.asarray(Rotation.from_rotvec(np.deg2rad(degrees) * axis).as_matrix())


def cloud(ndim: int, count: int = 30, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(-50, 50, (count, ndim))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_model_reproduces_its_own_maps(ndim: int, offset: float) -> None:
    points = cloud(ndim) + offset
    shift = Affine(np.eye(ndim), np.arange(1.0, ndim + 1))
    rigid = Affine(turn(ndim, 170), np.arange(ndim) * 3.0)
    affine = Affine(np.random.default_rng(1).normal(size=(ndim, ndim)), np.ones(ndim))
    for fit, map_ in ((fit_translation, shift), (fit_rigid, rigid), (fit_affine, affine)):
        found = fit(points, map_(points))
        np.testing.assert_allclose(found(points), map_(points), atol=1e-9 + 1e-12 * offset)
        np.testing.assert_allclose(found.matrix, map_.matrix, atol=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_fit_equals_plain_weighted_least_squares(ndim: int) -> None:
    rng = np.random.default_rng(2)
    source, target = cloud(ndim), cloud(ndim, seed=3)
    weights = rng.uniform(0, 1, len(source))
    design = np.column_stack([source, np.ones(len(source))])
    root = np.sqrt(weights)[:, None]
    plain = np.linalg.lstsq(design * root, target * root, rcond=None)[0]
    found = fit_affine(source, target, weights)
    np.testing.assert_allclose(found(source), design @ plain, atol=1e-8)


@pytest.mark.parametrize("fit", [fit_translation, fit_rigid, fit_affine])
def test_weight_zero_leaves_a_pair_out(fit: object) -> None:
    assert callable(fit)
    source, target = cloud(3), cloud(3, seed=4)
    weights = np.ones(30)
    weights[20:] = 0
    part, whole = fit(source[:20], target[:20]), fit(source, target, weights)
    np.testing.assert_allclose(whole(source), part(source), atol=1e-8)


@pytest.mark.parametrize("ndim", [2, 3])
def test_rigid_fit_never_mirrors(ndim: int) -> None:
    points = cloud(ndim)
    for target in (points * ([-1] + [1] * (ndim - 1)), points * 0 + 1.0, cloud(ndim, seed=5)):
        matrix = fit_rigid(points, target).matrix
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(ndim), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)


def test_flat_clouds_leave_the_open_direction_to_the_rigid_fit() -> None:
    points = cloud(3) * [0, 1, 1]
    rigid = Affine(turn(3, 40), [1.0, 2.0, 3.0])
    for fit in (fit_rigid, fit_affine):
        found = fit(points, rigid(points))
        np.testing.assert_allclose(found(points), rigid(points), atol=1e-9)
        np.testing.assert_allclose(np.abs(np.linalg.det(found.matrix)), 1, atol=1e-6)


def test_a_strong_prior_keeps_the_given_matrix() -> None:
    source, target = cloud(3), cloud(3, seed=6)
    centre = Affine(turn(3, 20), np.zeros(3))
    found = fit_affine(source, target, prior=1e12, centre=centre)
    np.testing.assert_allclose(found.matrix, centre.matrix, atol=1e-5)
    gap = found(source).mean(axis=0) - target.mean(axis=0)
    np.testing.assert_allclose(gap, 0, atol=1e-9)


def test_stretch_is_the_largest_change_of_a_length() -> None:
    assert Affine(turn(3, 77), np.zeros(3)).stretch == pytest.approx(1)
    assert Affine(np.diag([1.0, 0.25, 2.0]) @ turn(3, 77), np.zeros(3)).stretch == pytest.approx(4)
    assert Affine(np.diag([-3.0, 1.0]), np.zeros(2)).stretch == pytest.approx(3)


def test_degrees_of_freedom() -> None:
    names = ("translation", "rigid", "affine")
    assert [num_parameters(name, 2) for name in names] == [2, 3, 6]
    assert [num_parameters(name, 3) for name in names] == [3, 6, 12]
