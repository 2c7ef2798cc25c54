"""Polynomial fields: plain least squares, plain refits, theorems."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tilereg import InputError
from tilereg.fields.basis import monomials
from tilereg.fields.pairs import Pairs
from tilereg.fields.polynomial import fit_polynomial

Floats = NDArray[np.float64]


def scattered(count: int, ndim: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0, 40, (count, ndim))


def curved(points: Floats, degree: int, noise: float = 0.0) -> Floats:
    rng = np.random.default_rng(degree)
    design = monomials(points / 40, degree)
    terms = rng.normal(0, 2, (design.shape[1], points.shape[1]))
    return points + design @ terms + rng.normal(0, noise, points.shape)


@pytest.mark.parametrize("ndim", [2, 3])
def test_monomials_are_all_products(ndim: int) -> None:
    points = scattered(20, ndim)
    for degree, count in ((1, 1 + ndim), (2, [6, 10][ndim - 2]), (3, [10, 20][ndim - 2])):
        found = monomials(points, degree)
        assert found.shape == (20, count)
        # A product of any linear functions is a sum of them.
        slopes = np.random.default_rng(1).normal(size=(ndim, degree))
        product = (1 + points @ slopes).prod(axis=1)
        terms = np.linalg.lstsq(found, product, rcond=None)[0]
        np.testing.assert_allclose(found @ terms, product)
        assert np.linalg.matrix_rank(found / np.abs(found).max(axis=0)) == count


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_its_own_degree_is_found(degree: int, ndim: int) -> None:
    fixed = scattered(80, ndim)
    exact = fit_polynomial(Pairs.of(fixed, curved(fixed, degree)))
    assert exact.degree == degree
    np.testing.assert_allclose(exact.map(fixed), curved(fixed, degree), atol=1e-10)
    noisy = fit_polynomial(Pairs.of(fixed, curved(fixed, degree, 0.05)))
    assert noisy.degree == degree
    assert list(noisy.losses) == [1, 2, 3]


def test_is_weighted_least_squares_and_leaves_each_pair_out() -> None:
    fixed = scattered(45, 3)
    moving = curved(fixed, 3, 0.3)
    weight = np.random.default_rng(2).uniform(0.3, 1, 45)
    root, share = np.sqrt(weight)[:, None], weight / weight.sum()
    pairs = Pairs.of(fixed, moving, weight)
    missed = {}
    for degree in (1, 2, 3):
        design = monomials(fixed / 40, degree)

        def plain(rows: NDArray[np.bool_], design: Floats = design) -> Floats:
            left, right = root[rows] * design[rows], root[rows] * moving[rows]
            return design @ np.linalg.lstsq(left, right, rcond=None)[0]

        fit = fit_polynomial(pairs, degree=degree)
        np.testing.assert_allclose(fit.map(fixed), plain(np.ones(45, dtype=bool)), rtol=1e-9)
        assert fit.losses == {}
        gaps = [(plain(np.arange(45) != row) - moving)[row] for row in range(45)]
        missed[degree] = np.linalg.norm(gaps, axis=1)
    floor = min(float(np.median(each)) for each in missed.values())
    losses = fit_polynomial(pairs).losses
    for degree, each in missed.items():
        expected = np.exp(0.5 * share @ np.log(each**2 + floor**2))
        assert losses[degree] == pytest.approx(expected)


def test_neither_unit_nor_order_nor_pose_matter() -> None:
    fixed = scattered(100, 3)
    moving = curved(fixed, 3, 0.1)
    fit = fit_polynomial(Pairs.of(fixed, moving))
    nano = fit_polynomial(Pairs.of(fixed * 1e3, moving * 1e3))
    np.testing.assert_allclose(nano.map(fixed * 1e3) / 1e3, fit.map(fixed), rtol=1e-10)
    np.testing.assert_allclose(list(nano.losses.values()), [1e3 * v for v in fit.losses.values()])
    order = np.random.default_rng(3).permutation(100)
    again = fit_polynomial(Pairs.of(fixed[order], moving[order]))
    np.testing.assert_array_equal(again.map(fixed), fit.map(fixed))
    turn = Rotation.from_euler("xyz", [20, 40, 60], degrees=True)
    turned = fit_polynomial(Pairs.of(turn.apply(fixed), turn.apply(moving)))
    np.testing.assert_allclose(turned.map(turn.apply(fixed)), turn.apply(fit.map(fixed)), rtol=1e-9)


def test_pairs_at_one_place_and_of_no_weight() -> None:
    fixed = scattered(60, 2)
    fixed[50:] = fixed[:10]
    moving = curved(fixed, 2, 0.2)
    weight = np.random.default_rng(4).uniform(0.3, 1, 60)
    weight[20:25] = 0.0
    design, root = monomials(fixed / 40, 2), np.sqrt(weight)[:, None]
    plain = design @ np.linalg.lstsq(root * design, root * moving, rcond=None)[0]
    fit = fit_polynomial(Pairs.of(fixed, moving, weight), degree=2)
    np.testing.assert_allclose(fit.map(fixed), plain, rtol=1e-9)


def test_points_in_a_plane() -> None:
    flat = scattered(60, 2)
    fixed = np.column_stack([np.full(60, 7.0), flat])
    moving = np.column_stack([np.full(60, 9.0), curved(flat, 2)])
    fit = fit_polynomial(Pairs.of(fixed, moving))
    assert fit.degree == 2
    np.testing.assert_allclose(fit.map(fixed), moving, atol=1e-8)
    above = fit.map(fixed + [1.0, 0.0, 0.0]) - moving
    np.testing.assert_allclose(np.linalg.norm(above, axis=1), 1.0, atol=0.2)


def test_few_pairs_get_a_low_degree() -> None:
    fixed = scattered(8, 3)
    fit = fit_polynomial(Pairs.of(fixed, curved(fixed, 2)))
    assert list(fit.losses) == [1]
    with pytest.raises(InputError, match="10 monomials"):
        fit_polynomial(Pairs.of(fixed, fixed), degree=2)


@pytest.mark.parametrize("degree", [0, 4])
def test_refuses_other_degrees(degree: int) -> None:
    with pytest.raises(InputError, match=f"degree {degree}"):
        fit_polynomial(Pairs.of(scattered(30, 3), scattered(30, 3)), degree=degree)
