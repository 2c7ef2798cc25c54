"""Smooth fields: both priors on the lattice, the thin-plate fit, and the kernels below them."""

from __future__ import annotations

import numpy as np
import pytest

from tilereg import InputError, fit_field, smoothing
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent, ThinPlate

PRIORS = [Coherent(12.0, 0.5), ThinPlate(10.0, 5.0)]


def _problem(ndim: int, count: int = 400) -> tuple[Lattice, np.ndarray]:
    points = np.random.default_rng(0).uniform(0, 30, (count, ndim))
    return Lattice.cover(points.min(axis=0), points.max(axis=0), 6.0), points


@pytest.mark.parametrize("ndim", [2, 3])
def test_stencil_is_the_dense_matrix(ndim: int) -> None:
    lattice, points = _problem(ndim, 60)
    rng = np.random.default_rng(1)
    weights, values = rng.uniform(0.1, 2, 60), rng.normal(size=(60, ndim))
    equations = NormalEquations.assemble(lattice, points, weights, values)
    basis = np.stack(
        [
            lattice.field(np.repeat(unit.reshape(*lattice.nodes, 1), ndim, axis=-1))(points)[:, 0]
            for unit in np.eye(lattice.size)
        ],
        axis=1,
    )
    vector = rng.normal(size=(lattice.size, ndim))
    dense = basis.T @ (weights[:, None] * (basis @ vector))
    shape = equations.right.shape
    np.testing.assert_allclose(
        equations.product(vector.T.reshape(ndim, *shape[:3])).reshape(ndim, -1).T, dense, atol=1e-9
    )
    right = basis.T @ (weights[:, None] * values)
    np.testing.assert_allclose(equations.right.reshape(-1, ndim), right, atol=1e-9)


@pytest.mark.parametrize("prior", PRIORS, ids=["coherent", "thin-plate"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_maps_are_free(prior: Coherent | ThinPlate, ndim: int) -> None:
    lattice, points = _problem(ndim)
    matrix = np.random.default_rng(2).normal(0, 0.3, (ndim, ndim))
    values = points @ matrix.T + 1000.0
    equations = NormalEquations.assemble(lattice, points, np.ones(len(points)), values)
    solution = prior.solve(equations, tolerance=1e-12, max_iterations=4000)
    np.testing.assert_allclose(lattice.field(solution.coefficients)(points), values, atol=1e-3)


def test_coherent_is_a_gaussian_process() -> None:
    # Dense kriging with the same kernel and a free affine part, on a fine lattice.
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 30, (80, 2))
    values = np.stack([np.sin(points[:, 0] / 8), np.cos(points[:, 1] / 8)], axis=-1)
    noise, beta = 0.05, 8.0
    lattice = Lattice.cover(np.full(2, -24.0), np.full(2, 54.0), 2.0)
    equations = NormalEquations.assemble(lattice, points, np.full(80, 1 / noise**2), values)
    prior = Coherent(beta, 1.0)
    solution = prior.solve(equations, tolerance=1e-9, max_iterations=5000)
    queries = rng.uniform(3, 27, (50, 2))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * beta**2))

    affine = np.column_stack([points, np.ones(80)])
    system = np.block(
        [[kernel(points, points) + noise**2 * np.eye(80), affine], [affine.T, np.zeros((3, 3))]]
    )
    parts = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2))]))
    dense = (
        kernel(queries, points) @ parts[:80] + np.column_stack([queries, np.ones(50)]) @ parts[80:]
    )
    np.testing.assert_allclose(lattice.field(solution.coefficients)(queries), dense, atol=0.01)


def test_direct_and_iterative_solutions_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    lattice, points = _problem(3)
    values = np.sin(points / 7)
    equations = NormalEquations.assemble(lattice, points, np.ones(len(points)), values)
    direct = ThinPlate(5.0, 6.0).solve(equations)
    monkeypatch.setattr(smoothing, "_MOST_BAND_WORK", 0.0)
    iterative = ThinPlate(5.0, 6.0).solve(equations, tolerance=1e-10, max_iterations=20_000)
    assert iterative.num_iterations > 0
    np.testing.assert_allclose(direct.coefficients, iterative.coefficients, atol=1e-4)


def _bent(points: np.ndarray) -> np.ndarray:
    return points * 1.01 + 5 + 2 * np.sin(points / 60)


@pytest.mark.parametrize("ndim", [2, 3])
def test_fit_field_resists_wrong_pairs(ndim: int) -> None:
    rng = np.random.default_rng(4)
    fixed = rng.uniform(0, 200, (1200, ndim))
    moving = _bent(fixed) + rng.normal(0, 0.1, fixed.shape)
    wrong = rng.random(len(fixed)) < 0.1
    moving[wrong] += rng.normal(0, 30, (int(wrong.sum()), ndim))
    fit = fit_field(fixed, moving)
    error = np.linalg.norm(fit.transform(fixed) - _bent(fixed), axis=1)
    assert np.median(error) < 0.15
    assert (fit.weight[wrong] < 0.01).mean() > 0.95
    assert len(fit.losses) >= 2


def test_fit_field_is_free_of_units() -> None:
    rng = np.random.default_rng(5)
    fixed = rng.uniform(0, 200, (300, 3))
    moving = _bent(fixed) + rng.normal(0, 0.1, fixed.shape)
    fit, small = fit_field(fixed, moving), fit_field(fixed * 1e-3, moving * 1e-3)
    assert small.smoothing == fit.smoothing
    np.testing.assert_allclose(small.transform(fixed * 1e-3) * 1e3, fit.transform(fixed), atol=1e-5)


def test_more_smoothing_bends_less() -> None:
    fixed = np.random.default_rng(6).uniform(0, 200, (300, 2))
    moving = fixed + 3 * np.sin(fixed / 20)
    soft, stiff = (fit_field(fixed, moving, smoothing=s) for s in (1.0, 1e6))
    largest = [np.abs(fit.transform.field.coefficients).max() for fit in (soft, stiff)]
    assert largest[1] < 0.2 * largest[0]


def test_fit_field_refuses_bad_input() -> None:
    points = np.random.default_rng(7).uniform(0, 10, (20, 3))
    with pytest.raises(InputError, match="At least 4 pairs"):
        fit_field(points[:3], points[:3])
    with pytest.raises(InputError, match="smoothing"):
        fit_field(points, points, smoothing=-1.0)
    with pytest.raises(InputError, match="weights"):
        fit_field(points, points, weight=np.zeros(20))
