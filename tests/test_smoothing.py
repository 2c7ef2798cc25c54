"""Theorems of the two priors: affine maps cost nothing anywhere, splines equal SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from tilereg import smoothing
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent, Smoother, Solution, ThinPlate

Floats = NDArray[np.float64]

PRIORS: list[Smoother] = [Coherent(12.0, 0.5), ThinPlate(10.0, 6.0)]


def solve(prior: Smoother, points: Floats, values: Floats, **options: float) -> Floats:
    """Return the field at the points."""
    lattice = Lattice.cover(points.min(axis=0), points.max(axis=0), 6.0)
    equations = NormalEquations.assemble(lattice, points, np.ones(len(points)), values)
    solution = prior.solve(equations, **options)  # type: ignore[arg-type]
    return lattice.field(solution.coefficients)(points)


@pytest.mark.parametrize("prior", PRIORS, ids=["coherent", "thin-plate"])
@pytest.mark.parametrize("place", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_maps_come_back_wherever_they_are(prior: Smoother, place: float, ndim: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 30, (300, ndim)) + place
    values = (points - place) @ rng.normal(0, 0.3, (ndim, ndim)) + 100.0
    # The direct solution holds the affine maps up to its ridge.
    atol = 1e-5 if isinstance(prior, Coherent) else 1e-3
    np.testing.assert_allclose(solve(prior, points, values, tolerance=1e-8), values, atol=atol)


@pytest.mark.parametrize("prior", PRIORS, ids=["coherent", "thin-plate"])
def test_the_result_is_linear_in_the_values(prior: Smoother) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 30, (100, 2))
    one, two = rng.normal(size=(2, 100, 2))
    sum_ = solve(prior, points, 2 * one - two, tolerance=1e-10)
    parts = [solve(prior, points, v, tolerance=1e-10) for v in (one, two)]
    np.testing.assert_allclose(sum_, 2 * parts[0] - parts[1], atol=1e-5)


@pytest.mark.parametrize("prior", PRIORS, ids=["coherent", "thin-plate"])
@pytest.mark.parametrize("flat", [0, 1, 2])
def test_flat_clouds_are_clouds_in_the_plane(prior: Smoother, flat: int) -> None:
    rng = np.random.default_rng(2)
    plane = rng.uniform(0, 40, (200, 2))
    values = np.sin(plane / 20)
    points, raised = (np.insert(a, flat, 7.0, axis=1) for a in (plane, values))
    found = solve(prior, points, raised, tolerance=1e-10)
    expected = np.insert(solve(prior, plane, values, tolerance=1e-10), flat, 7.0, axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("smoothing_", [0.5, 20.0, 1000.0])
def test_thin_plate_equals_the_smoothing_spline_of_scipy(smoothing_: float) -> None:
    """On a wide, fine lattice; the bending energy of r^2 log r is 8 pi times its weights' form."""
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 40, (60, 2))
    values = np.sin(points / 9) + rng.normal(0, 0.1, points.shape)
    lattice = Lattice.cover(np.full(2, -80.0), np.full(2, 120.0), 2.0)
    equations = NormalEquations.assemble(lattice, points, np.ones(60), values)
    solution = ThinPlate(smoothing_, 2.0).solve(equations)
    plain = RBFInterpolator(
        points, values, kernel="thin_plate_spline", smoothing=8 * np.pi * smoothing_
    )
    queries = rng.uniform(4, 36, (100, 2))
    found = lattice.field(solution.coefficients)(queries)
    np.testing.assert_allclose(found, plain(queries), atol=0.02)


@pytest.mark.parametrize("shape", [(30.0, 30.0), (30.0, 50.0, 20.0), (0.0, 30.0, 40.0)])
def test_direct_and_iterative_solutions_agree_on_any_shape(
    shape: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.random.default_rng(4).uniform(0, 1, (300, len(shape))) * shape
    values = np.sin(points / 7)
    prior = ThinPlate(5.0, 6.0)
    direct = solve(prior, points, values)
    monkeypatch.setattr(smoothing, "_MOST_BAND_WORK", 0.0)
    iterative = solve(prior, points, values, tolerance=1e-11, max_iterations=20_000)
    np.testing.assert_allclose(direct, iterative, atol=1e-6)


@pytest.mark.parametrize("prior", PRIORS, ids=["coherent", "thin-plate"])
def test_a_start_changes_the_way_and_not_the_end(
    prior: Smoother, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothing, "_MOST_BAND_WORK", 0.0)
    rng = np.random.default_rng(5)
    points = rng.uniform(0, 30, (200, 3))
    lattice = Lattice.cover(points.min(axis=0), points.max(axis=0), 6.0)
    equations = NormalEquations.assemble(lattice, points, np.ones(200), np.sin(points / 8))
    cold = prior.solve(equations, tolerance=1e-9, max_iterations=20_000)
    warm = prior.solve(equations, start=cold, tolerance=1e-9, max_iterations=20_000)
    assert warm.num_iterations < cold.num_iterations / 4
    wrong = Solution(np.full_like(cold.coefficients, 9.0), (), 0)
    late = prior.solve(equations, start=wrong, tolerance=1e-9, max_iterations=20_000)
    for other in (warm, late):
        field = lattice.field(other.coefficients)(points)
        np.testing.assert_allclose(field, lattice.field(cold.coefficients)(points), atol=1e-5)


def test_a_wider_kernel_is_stiffer() -> None:
    rng = np.random.default_rng(6)
    points = rng.uniform(0, 60, (400, 2))
    values = rng.normal(0, 1, points.shape)
    bend = [solve(Coherent(beta, 0.1), points, values).std() for beta in (8.0, 16.0, 48.0)]
    assert bend[0] > bend[1] > bend[2]
