"""Fields by kriging: the closed form against plain refits, the prior that is chosen, theorems."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg import InputError
from tilereg.kriging import (
    Deviation,
    LeaveOut,
    Prior,
    choose_prior,
    fit_kriging,
    leave_one_out,
    residuals_of,
)
from tilereg.kriging.prior import gaussian_sums

Floats = NDArray[np.float64]
PRIORS = [
    Prior(8.0, 1e-3),
    Prior(2.0, 0.1),
    Prior(np.inf, 1e-2),
    Prior(2.0, 1e-2, 1.5),
    Prior(4.0, 1e-2, 3.0),
]


def scattered(count: int, ndim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0, 12, (count, ndim))


def refit(
    points: Floats, values: Floats, prior: Prior, at: Floats, size: Deviation | None = None
) -> Floats:
    """Dense kriging with an affine trend, as a system of equations."""
    ndim = points.shape[1]
    size = size or Deviation.of(points, values, np.inf)

    def covariance(a: Floats, b: Floats) -> Floats:
        shape = prior.covariance(np.linalg.norm(a[:, None] - b, axis=2))
        return np.asarray(size(a)[:, None] * shape * size(b))

    trend = np.column_stack([points, np.ones(len(points))])
    corner = np.zeros((ndim + 1, ndim + 1))
    noisy = covariance(points, points) + prior.noise * np.eye(len(points))
    system = np.block([[noisy, trend], [trend.T, corner]])
    parts = np.linalg.solve(system, np.concatenate([values, np.zeros((ndim + 1, ndim))]))
    return (
        covariance(at, points) @ parts[: -4 if ndim == 3 else -3]
        + np.column_stack([at, np.ones(len(at))]) @ parts[-(ndim + 1) :]
    )


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_leave_one_out_is_a_refit_without_the_pair(prior: Prior, ndim: int) -> None:
    points = scattered(40, ndim)
    values = np.random.default_rng(1).normal(size=(40, ndim))
    closed = leave_one_out(points, values, prior)
    # How large displacements are is measured once, on all pairs.
    size = Deviation.of(points, values, prior.reach)
    for row in range(0, 40, 7):
        rest = np.arange(40) != row
        plain = values[row] - refit(points[rest], values[rest], prior, points[[row]], size)[0]
        np.testing.assert_allclose(closed[row], plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("ndim", [2, 3])
def test_two_left_out_are_a_refit_without_both(ndim: int) -> None:
    points = scattered(40, ndim)
    values = np.random.default_rng(1).normal(size=(40, ndim))
    prior = Prior(4.0, 1e-2)
    others = LeaveOut.of(points, values, prior)
    at = np.array([0, 12, 39])
    closed = others.residuals_without(5, at)
    for row, found in zip(at, closed, strict=True):
        rest = ~np.isin(np.arange(40), (5, row))
        plain = values[row] - refit(points[rest], values[rest], prior, points[[row]])[0]
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-8)


def test_a_narrow_bump_keeps_its_middle() -> None:
    """One spot there is predicted worst by far, but it tells where its neighbours go."""
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 13, (400, 3))
    square = ((points - 6.5) ** 2).sum(axis=1, keepdims=True)
    moving = points + [0.0, 1.2, 0.0] * np.exp(-0.5 * square / 1.2**2)
    moving += rng.normal(0, 0.002, moving.shape)
    assert fit_kriging(points, moving).is_kept.all()


def bump(points: Floats) -> Floats:
    square = ((points - 6.0) ** 2).sum(axis=1, keepdims=True)
    return np.asarray([1.0, -0.8, 0.6] * np.exp(-0.5 * square / 1.6**2))


def test_a_quiet_region_does_not_smooth_a_bump() -> None:
    """Nor does the bump make ripples there: displacements are of different size."""
    rng = np.random.default_rng(12)
    points = rng.uniform(0, 12, (500, 3))
    moving = points + bump(points) + rng.normal(0, 0.002, points.shape)
    inside = rng.uniform(1, 11, (3000, 3))
    fit = fit_kriging(points, moving)
    assert np.isfinite(fit.prior.reach)

    def errors(map_: Callable[[Floats], Floats]) -> Floats:
        return np.asarray(np.linalg.norm(map_(inside) - inside - bump(inside), axis=1))

    unit, centre = fit.unit, points.mean(axis=0)
    x, values = (points - centre) / unit, (moving - points) / unit
    everywhere = choose_prior(x, values)[0]
    assert np.isinf(everywhere.reach)
    plain = errors(lambda at: at + unit * refit(x, values, everywhere, (at - centre) / unit))
    ours = errors(fit.transform)
    assert np.percentile(ours, 95) < 0.85 * np.percentile(plain, 95)
    assert np.median(ours) < 0.7 * np.median(plain)


def test_the_size_of_displacements() -> None:
    """Twice as large on one side; a wrong trend through it must not count."""
    rng = np.random.default_rng(13)
    points = rng.uniform(-10, 10, (4000, 2))
    right = points[:, :1] > 0
    values = rng.normal(size=points.shape) * np.where(right, 2.0, 1.0)
    size = Deviation.of(points, values + 3.0 + points @ [[0.5, 0.1], [0.0, -0.3]], 2.0)
    left, far = size(np.array([[-6.0, 0.0]])), size(np.array([[900.0, 0.0]]))
    assert size(np.array([[6.0, 0.0]])) / left == pytest.approx(2.0, rel=0.1)
    assert far == pytest.approx(1.0, abs=1e-3)
    axes = [np.linspace(-12, 12, 7), np.linspace(-9, 8, 5)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    np.testing.assert_allclose(
        size.on_grid(axes), size(nodes.reshape(-1, 2)).reshape(7, 5), rtol=1e-12
    )
    everywhere = Deviation.of(points, values, np.inf)
    np.testing.assert_array_equal(everywhere(points), 1.0)
    np.testing.assert_array_equal(everywhere.on_grid(axes), 1.0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_sums_on_a_grid_are_those_at_its_nodes(ndim: int) -> None:
    points, weights = scattered(30, ndim), np.random.default_rng(3).normal(size=(30, 4))
    axes = [np.linspace(-1, 13, count) for count in (4, 6, 5)[:ndim]]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    distance = np.linalg.norm(nodes[..., None, :] - points, axis=-1)
    plain = np.exp(-0.5 * (distance / 1.7) ** 2) @ weights
    np.testing.assert_allclose(gaussian_sums(points, weights, 1.7, axes), plain, atol=1e-12)


def test_residuals_of_many_noises_are_those_of_one() -> None:
    points = scattered(60, 3)
    values = np.random.default_rng(1).normal(size=(60, 3))
    prior = Prior(2.0, 1e-2, 2.0)
    size = Deviation.of(points, values, 2.0)(points)
    many = residuals_of(points, values, 2.0, (1e-3, prior.noise), size)[:, 1]
    np.testing.assert_allclose(
        many, np.linalg.norm(leave_one_out(points, values, prior), axis=1), rtol=1e-6
    )


def test_the_width_of_a_field_is_found() -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(0, 30, (300, 3))
    kernel = np.exp(-0.5 * (np.linalg.norm(points[:, None] - points, axis=2) / 8.0) ** 2)
    smooth = np.linalg.cholesky(kernel + 1e-9 * np.eye(300)) @ rng.normal(size=(300, 3))
    prior, residual, rows = choose_prior(points, smooth + rng.normal(0, 0.1, smooth.shape))
    assert 5.5 <= prior.beta <= 11
    assert 1e-3 <= prior.noise <= 0.1
    assert len(rows) == len(residual) == 300
    # A pair is predicted about as well as it is known: three axes of 0.1.
    assert 0.12 < np.median(residual) < 0.3


def test_many_points_are_sampled_spread_and_dense() -> None:
    points = scattered(5000, 3)
    prior, residual, rows = choose_prior(points, np.sin(points / 4))
    assert len(residual) == len(rows) <= 400
    assert len(np.unique(rows)) == len(rows)
    again = choose_prior(points, np.sin(points / 4))
    assert again[0] == prior
    np.testing.assert_array_equal(again[1], residual)


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_maps_are_reproduced(ndim: int) -> None:
    fixed = 40 * scattered(60, ndim)
    matrix = np.eye(ndim) + np.random.default_rng(3).normal(0, 0.1, (ndim, ndim))
    fit = fit_kriging(fixed, fixed @ matrix.T + 7.0)
    assert fit.is_kept.all()
    assert np.abs(fit.transform(fixed) - fixed @ matrix.T - 7.0).max() < 1e-4


def bent(points: Floats) -> Floats:
    return points + 0.8 * np.sin(points[:, ::-1] / 3.0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_units_change_nothing_but_units(ndim: int) -> None:
    fixed = scattered(200, ndim)
    plain, scaled = fit_kriging(fixed, bent(fixed)), fit_kriging(4096 * fixed, 4096 * bent(fixed))
    assert scaled.prior == plain.prior
    np.testing.assert_allclose(
        scaled.transform(4096 * fixed) / 4096, plain.transform(fixed), atol=1e-9
    )
    np.testing.assert_allclose(scaled.residual / 4096, plain.residual, rtol=1e-6)


def test_a_field_is_closer_than_a_spline() -> None:
    """Between the pairs of a smooth field, where it is judged."""
    fixed = scattered(300, 3, seed=4)
    noise = np.random.default_rng(5).normal(0, 0.01, fixed.shape)
    fit = fit_kriging(fixed, bent(fixed) + noise)
    inside = np.random.default_rng(6).uniform(1, 11, (500, 3))
    error = np.linalg.norm(fit.transform(inside) - bent(inside), axis=1)
    assert np.median(error) < 0.02
    assert np.median(fit.residual) < 0.06


def test_wrong_pairs_are_left_out() -> None:
    fixed = scattered(300, 3, seed=7)
    moving = bent(fixed) + np.random.default_rng(8).normal(0, 0.005, fixed.shape)
    wrong = np.array([3, 90, 200])
    moving[wrong] += [0.0, 1.5, -1.0]
    fit = fit_kriging(fixed, moving)
    assert not fit.is_kept[wrong].any()
    assert fit.is_kept.sum() >= 295
    assert np.isnan(fit.residual[wrong]).all()
    error = np.linalg.norm(fit.transform(fixed) - bent(fixed), axis=1)
    assert np.percentile(error[fit.is_kept], 95) < 0.05


def test_many_pairs() -> None:
    """Above the number for which all residuals are computed."""
    fixed = np.random.default_rng(9).uniform(0, 40, (2600, 3))
    fit = fit_kriging(fixed, bent(fixed))
    assert fit.is_kept.all()
    assert 0 < np.isfinite(fit.residual).sum() <= 400
    error = np.linalg.norm(fit.transform(fixed) - bent(fixed), axis=1)
    assert np.median(error) < 0.05


def test_a_fit_like_another_takes_its_prior_and_finds_the_same_field() -> None:
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 300, (4000, 3))
    true = x + 5 * np.sin(x[:, ::-1] / 60)
    y = true + rng.normal(0, 0.2, x.shape)
    part = fit_kriging(x[::2], y[::2], domain=(x.min(axis=0), x.max(axis=0)))
    assert part.solution is None  # of so few pairs the field is exact
    most = fit_kriging(x[:3800], y[:3800], domain=(x.min(axis=0), x.max(axis=0)))
    assert most.solution is not None
    like = fit_kriging(x, y, domain=(x.min(axis=0), x.max(axis=0)), like=most)
    assert (like.prior, like.unit) == (most.prior, most.unit)
    assert like.solution is not None
    assert like.solution.num_iterations < most.solution.num_iterations
    errors = [np.linalg.norm(fit.transform(x) - true, axis=1) for fit in (like, most)]
    assert np.median(errors[0]) < np.median(errors[1]) < 0.1
    # What is exact is not started from anything.
    assert fit_kriging(x[::2], y[::2], like=most).prior == fit_kriging(x[::2], y[::2]).prior


def test_clusters_far_apart_keep_their_pairs() -> None:
    """The lattice cannot be as fine as the pairs are dense: the prior is one that it can hold."""
    rng = np.random.default_rng(10)
    centres = rng.uniform(0, 1000, (20, 3))
    fixed = (centres[:, None] + rng.normal(0, 12, (20, 30, 3))).reshape(-1, 3)
    moving = fixed + 5 * np.sin(fixed[:, ::-1] / 150)
    fit = fit_kriging(fixed, moving)
    own = np.linalg.norm(fit.transform(fixed) - moving, axis=1)
    assert np.median(own) < 0.3


def test_pairs_at_one_place_count_once() -> None:
    fixed = scattered(150, 3)
    twice = np.concatenate([fixed, fixed + 1e-9])
    fit = fit_kriging(twice, bent(twice))
    assert fit.is_kept.sum() == 150
    plain = fit_kriging(fixed, bent(fixed))
    np.testing.assert_allclose(fit.transform(fixed), plain.transform(fixed), atol=1e-5)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="At least 5 pairs"):
        fit_kriging(np.eye(3), np.eye(3))
    with pytest.raises(InputError, match="Cannot fit"):
        fit_kriging(np.ones((6, 3)), np.ones((7, 3)))


def test_five_pairs_are_enough() -> None:
    fixed = scattered(5, 3)
    fit = fit_kriging(fixed, fixed + 1.0)
    np.testing.assert_allclose(fit.transform(fixed), fixed + 1.0, atol=1e-5)
