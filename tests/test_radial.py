"""Radial fields: scipy's interpolant, plain refits, theorems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.linalg import null_space
from scipy.spatial.transform import Rotation

from tilereg import InputError, farthest_points
from tilereg.fields.basis import Basis, monomials
from tilereg.fields.model import KERNELS
from tilereg.fields.pairs import Pairs
from tilereg.fields.penalised import fit_all, fit_some
from tilereg.fields.radial import fit_radial
from tilereg.fields.stiffness import choose_stiffness

Floats = NDArray[np.float64]
BETA = 6.0


def scattered(count: int, ndim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0, 40, (count, ndim))


def bent(points: Floats, noise: float = 0.0) -> Floats:
    jitter = np.random.default_rng(9).normal(0, noise, points.shape) if noise else 0.0
    return points * 1.02 + 5 + 2 * np.sin(points[:, ::-1] / 12) + jitter


def scipy_field(
    fixed: Floats, moving: Floats, kernel: str, degree: int, smoothing: float | Floats
) -> RBFInterpolator:
    epsilon = 1 / (math.sqrt(2) * BETA) if kernel == "gaussian" else None
    return RBFInterpolator(
        fixed, moving, kernel=kernel, degree=degree, smoothing=smoothing, epsilon=epsilon
    )


def width(kernel: str) -> float | None:
    return BETA if kernel == "gaussian" else None


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 50.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_scipy(kernel: str, smoothing: float, ndim: int) -> None:
    fixed = scattered(80, ndim)
    moving = bent(fixed, 0.1)
    weight = np.random.default_rng(1).uniform(0.2, 1.5, 80)
    queries = scattered(50, ndim, seed=2) * 1.2 - 4
    pairs = Pairs.of(fixed, moving, weight)
    for degree in {KERNELS[kernel].least_degree, 2}:
        fit = fit_radial(
            pairs, kernel=kernel, smoothing=smoothing, degree=degree, beta=width(kernel)
        )
        plain = scipy_field(fixed, moving, kernel, degree, smoothing / weight)
        np.testing.assert_allclose(fit.map(queries), plain(queries), rtol=1e-7)
        assert (fit.smoothing, fit.degree) == (pytest.approx(smoothing), degree)
        assert fit.losses == {}


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_polynomials_are_free(degree: int) -> None:
    fixed = scattered(120, 3)
    design = monomials(fixed / 40, degree)
    moving = fixed + design @ np.random.default_rng(3).normal(size=(design.shape[1], 3))
    fit = fit_radial(Pairs.of(fixed, moving), smoothing=1e3, degree=degree)
    np.testing.assert_allclose(fit.map(fixed), moving, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_centres_at_all_points_or_least_squares_is_one_field(kernel: str) -> None:
    points = scattered(70, 3) / 4
    values = np.sin(points)
    weight = np.random.default_rng(4).uniform(0.5, 1, 70)
    basis = Basis(kernel, 2, beta=2.0, reach=10.0)
    queries = scattered(30, 3, seed=5) / 4

    def at(weights: Floats, terms: Floats, centres: Floats) -> Floats:
        return basis.radial(queries, centres) @ weights + basis.polynomial(queries) @ terms

    order = np.random.default_rng(6).permutation(70)
    every = at(*fit_all(points, values, weight, basis, 0.1), points)
    some = at(*fit_some(points, values, weight, points[order], basis, 0.1), points[order])
    np.testing.assert_allclose(some, every, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_fewer_centres_are_plain_penalised_least_squares(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The field is a sum over chunks of points: here of nine each.
    monkeypatch.setattr("tilereg.fields.penalised._BATCH", 200)
    points = scattered(90, 2) / 4
    values = np.cos(points)
    weight = np.random.default_rng(7).uniform(0.5, 1, 90)
    centres, smoothing = points[::4], 0.2
    basis = Basis(kernel, 2, beta=2.0, reach=10.0)
    weights, terms = fit_some(points, values, weight, centres, basis, smoothing)
    # Dense twin: rows of all pairs, and below them the root of the energy.
    free = null_space(basis.polynomial(centres).T)
    energy = np.linalg.cholesky(free.T @ basis.radial(centres, centres) @ free).T
    root = np.sqrt(weight)[:, None]
    design = np.hstack([basis.radial(points, centres) @ free, basis.polynomial(points)])
    num_terms = basis.polynomial(points).shape[1]
    below = np.hstack([np.sqrt(smoothing) * energy, np.zeros((len(energy), num_terms))])
    right = np.vstack([root * values, np.zeros((len(energy), 2))])
    plain = np.linalg.lstsq(np.vstack([root * design, below]), right, rcond=1e-14)[0]
    found = basis.radial(points, centres) @ weights + basis.polynomial(points) @ terms
    np.testing.assert_allclose(found, design @ plain, atol=1e-7)
    np.testing.assert_allclose(basis.polynomial(centres).T @ weights, 0, atol=1e-6)


@pytest.mark.parametrize("kernel", ["thin_plate_spline", "gaussian"])
def test_smoothing_is_chosen_by_leaving_each_pair_out(kernel: str) -> None:
    points = scattered(30, 2)
    values = bent(points, 0.3)
    weight = np.random.default_rng(8).uniform(0.3, 1, 30)
    basis = Basis(kernel, 1, beta=BETA, reach=40.0)
    amounts = (1e3, 10.0, 0.1)
    found = choose_stiffness(points, values, weight, (basis,), amounts)
    residual = np.empty((30, 3))
    for row in range(30):
        rest = np.arange(30) != row
        for place, amount in enumerate(amounts):
            plain = scipy_field(points[rest], values[rest], kernel, 1, amount / weight[rest])
            residual[row, place] = np.linalg.norm(plain(points[[row]])[0] - values[row])
    floor = np.median(residual, axis=0).min()
    share = weight / weight.sum()
    losses = np.exp(0.5 * share @ np.log(residual**2 + floor**2))
    np.testing.assert_allclose(list(found.losses.values()), losses, rtol=1e-6)
    assert found.smoothing == amounts[int(np.argmin(losses))]


def test_chosen_smoothing_follows_the_noise() -> None:
    fixed = scattered(250, 3)
    amounts = []
    for noise in (0.02, 0.5):
        fit = fit_radial(Pairs.of(fixed, bent(fixed, noise)))
        error = np.linalg.norm(fit.map(fixed) - bent(fixed), axis=1)
        assert np.sqrt((error**2).mean()) < 0.9 * noise * math.sqrt(3)
        assert min(fit.losses.values()) == pytest.approx(noise * 2.4, rel=0.35)
        amounts.append(fit.smoothing)
    assert amounts[1] > 10 * amounts[0]


def test_an_affine_map_is_found_stiff() -> None:
    fixed = scattered(60, 3)
    moving = fixed @ np.diag([1.1, 0.9, 1.0]) + [5.0, 6.0, 7.0]
    for kernel in KERNELS:
        fit = fit_radial(Pairs.of(fixed, moving), kernel=kernel)
        np.testing.assert_allclose(fit.map(fixed), moving, atol=1e-9)
        assert (fit.smoothing, fit.beta) == max((s, b) for b, s in fit.losses)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_unit_changes_nothing_but_units(kernel: str) -> None:
    fixed = scattered(100, 3)
    moving = bent(fixed, 0.1)
    fit = fit_radial(Pairs.of(fixed, moving), kernel=kernel)
    nano = fit_radial(Pairs.of(fixed * 1e3, moving * 1e3), kernel=kernel)
    np.testing.assert_allclose(nano.map(fixed * 1e3) / 1e3, fit.map(fixed), rtol=1e-7)
    assert nano.smoothing == pytest.approx(fit.smoothing * 1e3 ** KERNELS[kernel].power)
    assert nano.beta == pytest.approx(1e3 * fit.beta)
    losses = np.array(list(nano.losses.values())) / list(fit.losses.values())
    np.testing.assert_allclose(losses, 1e3, rtol=1e-5)


@pytest.mark.parametrize("control_points", [2000, 60])
def test_order_and_pose_of_the_pairs_change_nothing(control_points: int) -> None:
    fixed = scattered(200, 3)
    moving = bent(fixed, 0.1)
    fit = fit_radial(Pairs.of(fixed, moving), control_points=control_points)
    order = np.random.default_rng(2).permutation(200)
    again = fit_radial(Pairs.of(fixed[order], moving[order]), control_points=control_points)
    np.testing.assert_array_equal(again.map(fixed), fit.map(fixed))
    turn = Rotation.from_euler("xyz", [20, 40, 60], degrees=True)
    turned = fit_radial(
        Pairs.of(turn.apply(fixed), turn.apply(moving)), control_points=control_points
    )
    np.testing.assert_allclose(turned.map(turn.apply(fixed)), turn.apply(fit.map(fixed)), atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1e-9, 0.0), (1e9, 0.0), (1.0, 1e6), (1e-3, -1e2)])
def test_extreme_domains(scale: float, shift: float) -> None:
    fixed = scattered(60, 2)
    plain = fit_radial(Pairs.of(fixed, bent(fixed))).map(fixed)
    far = fit_radial(Pairs.of(fixed * scale + shift, bent(fixed) * scale + shift))
    found = (far.map(fixed * scale + shift) - shift) / scale
    np.testing.assert_allclose(found, plain, atol=1e-4)


def test_a_weight_of_zero_leaves_a_pair_out() -> None:
    fixed = scattered(60, 3)
    moving = bent(fixed)
    weight = np.ones(60)
    weight[[3, 40]] = 0.0
    spoiled = moving.copy()
    spoiled[[3, 40]] += 1e3
    left = weight > 0
    fit = fit_radial(Pairs.of(fixed, spoiled, weight))
    plain = fit_radial(Pairs.of(fixed[left], moving[left]))
    np.testing.assert_array_equal(fit.map(fixed), plain.map(fixed))


def test_pairs_at_one_place_are_joined() -> None:
    # As in scipy's system, where such pairs have rows and columns of their own.
    fixed = scattered(50, 3)
    fixed[10:20] = fixed[:10]
    fixed[20] = fixed[0]
    moving = bent(fixed) + np.random.default_rng(3).normal(0, 0.2, fixed.shape)
    weight = np.random.default_rng(4).uniform(0.3, 1, 50)
    pairs = Pairs.of(fixed, moving, weight)
    assert len(pairs) == 39
    plain = scipy_field(fixed, moving, "thin_plate_spline", 1, 2.0 / weight)
    queries = scattered(30, 3, seed=5)
    fit = fit_radial(pairs, smoothing=2.0)
    np.testing.assert_allclose(fit.map(queries), plain(queries), rtol=1e-8)
    assert np.isfinite(fit_radial(pairs, smoothing=0.0).map(queries)).all()


@pytest.mark.parametrize("control_points", [2000, 30])
def test_points_in_a_plane(control_points: int) -> None:
    flat = scattered(80, 2)
    fixed = np.column_stack([np.full(80, 7.0), flat])
    moved = bent(flat)
    moving = np.column_stack([np.full(80, 9.0), moved])
    fit = fit_radial(Pairs.of(fixed, moving), smoothing=1.0, control_points=control_points)
    plain = fit_radial(Pairs.of(flat, moved), smoothing=1.0, control_points=control_points)
    found = fit.map(fixed)
    np.testing.assert_allclose(found[:, 1:], plain.map(flat), atol=1e-3)
    np.testing.assert_allclose(found[:, 0], 9.0, atol=1e-6)
    # Off the plane the map goes on as a rigid one does.
    above = fit.map(fixed + [1.0, 0.0, 0.0]) - found
    np.testing.assert_allclose(above[:, 0], 1.0, atol=0.05)


def test_many_pairs_and_few_centres() -> None:
    fixed = scattered(900, 3)
    moving = bent(fixed, 0.3)
    pairs = Pairs.of(fixed, moving)
    errors = {}
    for count in (900, 150):
        fit = fit_radial(pairs, control_points=count)
        assert fit.num_centres == count
        errors[count] = np.linalg.norm(fit.map(fixed) - bent(fixed), axis=1).mean()
    # All pairs are in the fit, so the error is not that of 150 pairs.
    assert errors[150] < 1.1 * errors[900]
    few = farthest_points(fixed, 150)
    alone = fit_radial(Pairs.of(fixed[few], moving[few]))
    assert errors[150] < 0.8 * np.linalg.norm(alone.map(fixed) - bent(fixed), axis=1).mean()


def test_evaluation_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = scattered(50, 3)
    fit = fit_radial(Pairs.of(fixed, bent(fixed)))
    plain = fit.map(fixed)
    monkeypatch.setattr("tilereg.fields.radial._BATCH", 60)
    np.testing.assert_allclose(fit.map(fixed), plain, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel": "cone"}, "kernel 'cone'"),
        ({"degree": 4}, "degree 4"),
        ({"degree": 1, "kernel": "quintic"}, "from 2 to 3"),
        ({"degree": 3}, "At least 21"),
        ({"smoothing": -1.0}, "smoothing -1"),
        ({"smoothing": math.inf}, "smoothing inf"),
        ({"kernel": "gaussian", "beta": 0.0}, "beta 0.0 um"),
        ({"kernel": "gaussian", "beta": 1e6, "smoothing": 0.0}, "no single solution"),
        ({"control_points": 5}, "control_points 5"),
        ({"control_points": 10**6}, "'thin-plate' or 'kriging'"),
    ],
)
def test_refuses(arguments: dict[str, object], words: str) -> None:
    fixed = scattered(15, 3)
    with pytest.raises(InputError, match=words):
        fit_radial(Pairs.of(fixed, bent(fixed)), **arguments)  # type: ignore[arg-type]
