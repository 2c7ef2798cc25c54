"""Coherent Point Drift: one step against dense sums, and what a whole run must find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from tilereg.lattice import Lattice
from tilereg.matching.drift import Drift, drift, local_density
from tilereg.smoothing import Coherent, Solution

Floats = NDArray[np.float64]

PRIOR = Coherent(8.0, 0.1)


def cloud(count: int, ndim: int, seed: int = 0) -> Floats:
    """Return random points at a mean spacing of about one."""
    side = (count * (0.17 if ndim == 3 else 0.25) ** -1) ** (1 / ndim)
    return np.random.default_rng(seed).uniform(0, side, (count, ndim))


def run(source: Floats, target: Floats, **options: object) -> tuple[Drift, Lattice]:
    lattice = Lattice.cover(source.min(axis=0), source.max(axis=0), PRIOR.spacing)
    return drift(source, source, target, lattice, PRIOR, **options), lattice  # type: ignore[arg-type]


def moved(source: Floats, found: Drift, lattice: Lattice) -> Floats:
    return source + lattice.field(found.solution.coefficients)(source)


@pytest.mark.parametrize("sigma", [0.1, 0.33, 1.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_first_posterior_equals_the_dense_sums(ndim: int, sigma: float) -> None:
    source = cloud(80, ndim)
    target = source[:60] + np.random.default_rng(1).normal(0, sigma, (60, ndim))
    w = 0.4
    found, _ = run(source, target, sigma=sigma, w=w, max_iterations=1)
    square = cdist(source, target, "sqeuclidean")
    kernel = np.where(square < (3.5 * sigma) ** 2, np.exp(-square / (2 * sigma**2)), 0)
    outlier = w / (1 - w) * 80 / 60 * local_density(target) * (2 * np.pi * sigma**2) ** (ndim / 2)
    p = kernel / (kernel.sum(axis=0) + outlier)
    p1 = p.sum(axis=1)
    np.testing.assert_allclose(found.posterior, p1, atol=1e-12)
    near = p1 > 1e-3
    assert near.sum() > 5
    mean = (p[near] @ target) / p1[near, None]
    np.testing.assert_allclose(found.partner[near], mean, atol=1e-9)
    np.testing.assert_allclose(found.partner[~near], source[~near])
    step = found.steps[0]
    assert step.w == pytest.approx(np.clip(1 - p1.sum() / 60, 0.02, 0.95))


@pytest.mark.parametrize("ndim", [2, 3])
def test_sigma_estimate_is_the_weighted_residual(ndim: int) -> None:
    source, target = cloud(80, ndim), cloud(80, ndim) + 0.05
    found, lattice = run(source, target, sigma=0.2, max_iterations=1)
    after = moved(source, found, lattice)
    square = cdist(source, target, "sqeuclidean")
    kernel = np.where(square < (3.5 * 0.2) ** 2, np.exp(-square / (2 * 0.2**2)), 0)
    outlier = local_density(target) * (2 * np.pi * 0.2**2) ** (ndim / 2)
    p = kernel / (kernel.sum(axis=0) + outlier)
    plain = np.sqrt((p * cdist(after, target, "sqeuclidean")).sum() / (ndim * p.sum()))
    assert found.steps[0].sigma_ml == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_smooth_map_is_found(ndim: int) -> None:
    rng = np.random.default_rng(2)
    source = cloud(1000, ndim)
    truth = source + 0.25 * np.sin(source / 5) + 0.1
    noise = 0.03
    target = (truth + rng.normal(0, noise, truth.shape))[rng.permutation(1000)[:700]]
    target = np.concatenate([target, cloud(300, ndim, seed=3)])
    found, lattice = run(source, target)
    error = np.linalg.norm(moved(source, found, lattice) - truth, axis=1)
    assert np.median(error) < 0.03
    assert found.sigma == pytest.approx(noise, rel=0.25)
    assert found.w == pytest.approx(0.3, abs=0.08)
    sigmas = [step.sigma for step in found.steps]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(b >= 0.74 * a for a, b in itertools.pairwise(sigmas))


def test_the_order_of_points_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    source = cloud(200, 3)
    target = source + rng.normal(0, 0.05, source.shape)
    rows, others = rng.permutation(200), rng.permutation(200)
    one, lattice = run(source, target)
    two, _ = run(source[rows], target[others])
    np.testing.assert_allclose(two.posterior, one.posterior[rows], atol=1e-4)
    gap = moved(source, two, lattice) - moved(source, one, lattice)
    assert np.abs(gap).max() < 2e-3


def test_a_start_close_to_the_end_is_kept() -> None:
    source = cloud(300, 2)
    truth = source + 1.5 + 0.3 * np.sin(source / 6)
    lost, lattice = run(source, truth)
    points = np.stack(
        np.meshgrid(
            *(o + s * np.arange(n) for o, s, n in
              zip(lattice.origin, lattice.spacing, lattice.nodes, strict=True)),
            indexing="ij",
        ),
        axis=-1,
    )  # fmt: skip
    start = Solution(1.5 + 0.3 * np.sin(points / 6), (), 0)
    found, _ = run(source, truth, start=start)
    assert np.median(np.linalg.norm(moved(source, lost, lattice) - truth, axis=1)) > 0.3
    assert np.median(np.linalg.norm(moved(source, found, lattice) - truth, axis=1)) < 0.02


def test_sigma_stays_above_its_least() -> None:
    source = cloud(200, 2)
    found, _ = run(source, source, least_sigma=0.07)
    assert found.sigma == pytest.approx(0.07)
    assert min(step.sigma for step in found.steps) >= 0.07


def test_clouds_out_of_reach_have_no_partners() -> None:
    source = cloud(50, 3)
    found, lattice = run(source, source + 1000.0)
    assert not found.posterior.any()
    assert not found.solution.coefficients.any()
    assert found.steps == ()
    np.testing.assert_array_equal(found.partner, source)
    np.testing.assert_array_equal(moved(source, found, lattice), source)


@pytest.mark.parametrize("ndim", [2, 3])
def test_local_density_of_a_uniform_cloud(ndim: int) -> None:
    side = 30.0 if ndim == 3 else 100.0
    points = np.random.default_rng(5).uniform(0, side, (4000, ndim))
    inner = (np.abs(points - side / 2) < 0.35 * side).all(axis=1)
    true = 4000 / side**ndim
    assert np.median(local_density(points)[inner]) == pytest.approx(true, rel=0.15)
    assert np.median(local_density(10 * points)[inner]) == pytest.approx(true / 10**ndim, rel=0.15)


def test_local_density_is_finite_where_points_coincide() -> None:
    points = np.concatenate([np.zeros((40, 3)), cloud(60, 3)])
    assert np.isfinite(local_density(points)).all()
    assert local_density(np.zeros((1, 3))) == 1
