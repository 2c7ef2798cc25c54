"""A map held by a lattice: exact where it can be, and never worse than stated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg import Affine, InputError, lattice_sampling
from tilereg.fields.pairs import Pairs
from tilereg.fields.radial import fit_radial
from tilereg.lattice_sampling import sample_on_lattice

Floats = NDArray[np.float64]
LOW, HIGH = np.array([0.0, -5.0, 2.0]), np.array([40.0, 30.0, 9.0])


def waves(points: Floats) -> Floats:
    return points + np.sin(points[:, ::-1] / 5)


def queries(low: Floats, high: Floats, count: int = 30_000) -> Floats:
    return np.random.default_rng(0).uniform(low, high, (count, len(low)))


def worst(map_: Callable[[Floats], Floats], held: object, points: Floats) -> float:
    return float(np.linalg.norm(held.transform(points) - map_(points), axis=1).max())  # type: ignore[attr-defined]


@pytest.mark.parametrize("ndim", [2, 3])
def test_cubic_polynomials_are_held_exactly(ndim: int) -> None:
    low, high = LOW[:ndim], HIGH[:ndim]

    def cubic(points: Floats) -> Floats:
        return points + (points / 20) ** 3 + points[:, :1] * points[:, 1:2] * points / 400

    held = sample_on_lattice(cubic, low, high, affine=Affine.identity(ndim), tolerance=1e-9)
    assert held.transform.field is not None
    assert max(held.transform.field.nodes) == 9
    assert held.error < 1e-11
    assert worst(cubic, held, queries(low, high)) < 1e-11


@pytest.mark.parametrize("tolerance", [0.3, 0.01, 3e-4])
@pytest.mark.parametrize("ndim", [2, 3])
def test_smooth_maps_are_within_the_bound(ndim: int, tolerance: float) -> None:
    low, high = LOW[:ndim], HIGH[:ndim]
    held = sample_on_lattice(waves, low, high, affine=Affine.identity(ndim), tolerance=tolerance)
    assert held.error <= tolerance
    found = worst(waves, held, queries(low, high))
    assert 0.4 * held.error < found <= held.error


@pytest.mark.parametrize("kernel", ["linear", "thin_plate_spline", "cubic", "quintic", "gaussian"])
def test_radial_maps_are_within_the_bound(kernel: str) -> None:
    rng = np.random.default_rng(1)
    fixed = rng.uniform(0, 60, (120, 3))
    moving = waves(fixed) + rng.normal(0, 0.1, fixed.shape)
    fit = fit_radial(Pairs.of(fixed, moving), kernel=kernel, smoothing=1.0)
    held = sample_on_lattice(
        fit.map,
        fixed.min(axis=0),
        fixed.max(axis=0),
        affine=Affine.identity(3),
        tolerance=0.15,
        at=fixed,
    )
    # Where such maps are the least smooth is at the centres, and next to them.
    near = fixed[rng.integers(0, 120, 20_000)] + rng.normal(0, 0.3, (20_000, 3))
    near = np.clip(near, fixed.min(axis=0), fixed.max(axis=0))
    anywhere = queries(fixed.min(axis=0), fixed.max(axis=0), 20_000)
    assert worst(fit.map, held, np.vstack([fixed, near, anywhere])) <= held.error <= 0.15


def test_outside_it_is_that_of_the_nearest_point() -> None:
    affine = Affine(1.1 * np.eye(3), np.ones(3))
    held = sample_on_lattice(waves, LOW, HIGH, affine=affine, tolerance=0.01)
    points = queries(LOW - 30, HIGH + 30, 1000)
    inside = np.clip(points, LOW, HIGH)
    expected = affine(points) + waves(inside) - affine(inside)
    np.testing.assert_allclose(held.transform(points), expected, atol=0.01)


def test_a_box_without_extent_along_an_axis() -> None:
    high = np.array([40.0, -5.0, 9.0])
    held = sample_on_lattice(waves, LOW, high, affine=Affine.identity(3), tolerance=0.01)
    assert held.transform.field is not None
    assert held.transform.field.nodes[1] == 1
    assert worst(waves, held, queries(LOW, high)) <= held.error
    point = sample_on_lattice(waves, LOW, LOW, affine=Affine.identity(3), tolerance=0.01)
    np.testing.assert_allclose(point.transform(LOW[None]), waves(LOW[None]))


def test_the_unit_changes_nothing_but_units() -> None:
    held = sample_on_lattice(waves, LOW, HIGH, affine=Affine.identity(3), tolerance=0.02)
    nano = sample_on_lattice(
        lambda x: 1e3 * waves(x / 1e3),
        1e3 * LOW,
        1e3 * HIGH,
        affine=Affine.identity(3),
        tolerance=20.0,
    )
    assert nano.transform.field is not None
    assert held.transform.field is not None
    assert nano.transform.field.nodes == held.transform.field.nodes
    assert nano.error == pytest.approx(1e3 * held.error, rel=1e-6)


def test_chunks_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"affine": Affine.identity(3), "tolerance": 0.02}
    plain = sample_on_lattice(waves, LOW, HIGH, **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(lattice_sampling, "_CHUNK", 777)
    monkeypatch.setattr(lattice_sampling, "_TRIED", 500)
    sizes = []

    def counted(points: Floats) -> Floats:
        sizes.append(len(points))
        return waves(points)

    held = sample_on_lattice(counted, LOW, HIGH, **arguments)  # type: ignore[arg-type]
    assert max(sizes) <= 1100
    assert held.error == plain.error
    assert held.transform.field is not None
    assert plain.transform.field is not None
    np.testing.assert_array_equal(
        held.transform.field.coefficients, plain.transform.field.coefficients
    )


def test_marked_points_are_looked_at() -> None:
    place = np.array([[11.0, 3.0, 4.0]])

    def bump(points: Floats) -> Floats:
        square = ((points - place) ** 2).sum(axis=1, keepdims=True)
        return points + np.exp(-0.5 * square / 2.0**2)

    held = sample_on_lattice(bump, LOW, HIGH, affine=Affine.identity(3), tolerance=0.01, at=place)
    near = place + np.random.default_rng(2).normal(0, 2, (20_000, 3))
    near = near[((near >= LOW) & (near <= HIGH)).all(axis=1)]
    assert worst(bump, held, near) <= held.error <= 0.01


def test_refuses_what_it_cannot_hold() -> None:
    def torn(points: Floats) -> Floats:
        return points + (points[:, :1] > 17.3)

    with pytest.raises(InputError, match=r"at most 5000 nodes: .* misses it by [01]\.\d+ um"):
        sample_on_lattice(
            torn, LOW, HIGH, affine=Affine.identity(3), tolerance=0.01, most_nodes=5000
        )
    with pytest.raises(InputError, match="tolerance 0"):
        sample_on_lattice(waves, LOW, HIGH, affine=Affine.identity(3), tolerance=0.0)
    with pytest.raises(InputError, match="at least 216"):
        sample_on_lattice(
            waves, LOW, HIGH, affine=Affine.identity(3), tolerance=1.0, most_nodes=100
        )


def test_the_finest_lattice_that_is_allowed_is_tried() -> None:
    held = sample_on_lattice(waves, LOW, HIGH, affine=Affine.identity(3), tolerance=1e-3)
    assert held.transform.field is not None
    size = int(np.prod(held.transform.field.nodes))
    again = sample_on_lattice(
        waves, LOW, HIGH, affine=Affine.identity(3), tolerance=1e-3, most_nodes=size
    )
    assert again.error <= 1e-3
