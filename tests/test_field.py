"""The fitted field: exact maps, honest smoothing, and the split into affine and rest."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.field import fit_field, mean_spacing, split_affine
from tilereg.lattice import Lattice
from tilereg.transform import Affine, Transform

Floats = NDArray[np.float64]


def bent(points: Floats) -> Floats:
    return points * 1.01 + 5 + 3 * np.sin(points / 40)


@pytest.mark.parametrize("place", [0.0, 1e5])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_maps_are_reproduced(ndim: int, unit: float, place: float) -> None:
    rng = np.random.default_rng(ndim)
    fixed = unit * (rng.uniform(0, 100, (150, ndim)) + place)
    affine = Affine(np.eye(ndim) + rng.normal(0, 0.1, (ndim, ndim)), unit * np.arange(ndim))
    fit = fit_field(fixed, affine(fixed))
    inside = unit * (rng.uniform(10, 90, (50, ndim)) + place)
    np.testing.assert_allclose(fit.transform(inside), affine(inside), atol=1e-5 * unit, rtol=1e-10)


def test_an_affine_map_needs_no_more_than_its_fewest_pairs() -> None:
    for ndim in (2, 3):
        fixed = np.random.default_rng(0).uniform(0, 100, (ndim + 1, ndim))
        fit = fit_field(fixed, 2 * fixed + 1, smoothing=1.0)
        np.testing.assert_allclose(fit.transform(fixed), 2 * fixed + 1, atol=1e-3)


@pytest.mark.parametrize("name", ["plane", "line", "twice", "one place"])
def test_clouds_without_volume(name: str) -> None:
    rng = np.random.default_rng(1)
    fixed = rng.uniform(0, 100, (60, 3))
    fixed = {
        "plane": fixed * [0, 1, 1],
        "line": fixed * [0, 0, 1],
        "twice": np.repeat(fixed, 2, axis=0),
        "one place": np.full((60, 3), 5.0),
    }[name]
    fit = fit_field(fixed, fixed + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(fit.transform(fixed), fixed + [1.0, 2.0, 3.0], atol=1e-4)


def test_chosen_smoothing_predicts_held_out_pairs_as_well_as_any() -> None:
    rng = np.random.default_rng(2)
    fixed = rng.uniform(0, 200, (800, 2))
    moving = bent(fixed) + rng.normal(0, 0.5, fixed.shape)
    fresh = rng.uniform(10, 190, (500, 2))
    fit = fit_field(fixed, moving)
    assert fit.losses[fit.smoothing] == min(fit.losses.values())

    def error(transform: Transform) -> float:
        return float(np.sqrt(((transform(fresh) - bent(fresh)) ** 2).sum(1).mean()))

    others = [error(fit_field(fixed, moving, smoothing=10.0**k).transform) for k in range(-1, 7)]
    assert error(fit.transform) < 1.3 * min(others)
    assert error(fit.transform) < 0.5 * 0.5 * np.sqrt(2)


def test_weights_count() -> None:
    rng = np.random.default_rng(3)
    fixed = rng.uniform(0, 100, (300, 2))
    moving = fixed.copy()
    moving[150:] += 50.0
    trust = np.ones(300)
    trust[150:] = 0
    fit = fit_field(fixed, moving, weight=trust)
    np.testing.assert_allclose(fit.transform(fixed[:150]), fixed[:150], atol=1e-3)
    assert not fit.weight[150:].any()


def test_beyond_its_domain_the_field_goes_on_as_at_the_rim() -> None:
    rng = np.random.default_rng(4)
    fixed = rng.uniform(0, 100, (400, 2))
    transform = fit_field(fixed, bent(fixed)).transform
    assert transform.field is not None
    _, high = transform.field.domain
    far = np.array([[50.0, high[1] + 1.0], [50.0, high[1] + 1000.0]])
    u = transform.field(far)
    np.testing.assert_allclose(u[0], u[1], atol=1e-9)
    # Only the affine part grows outside, and what is left of the field is small.
    assert np.abs(u).max() < 10
    wide = fit_field(fixed, bent(fixed), domain=(np.full(2, -200.0), np.full(2, 300.0))).transform
    assert wide.field is not None
    assert (wide.field.domain[1] >= 300).all()
    assert (wide.field.domain[0] <= -200).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_split_moves_the_affine_part_and_keeps_the_map(ndim: int) -> None:
    rng = np.random.default_rng(5)
    lattice = Lattice.cover(np.zeros(ndim), np.full(ndim, 50.0), 10.0)
    nodes = np.stack(
        np.meshgrid(
            *(o + s * np.arange(n) for o, s, n in
              zip(lattice.origin, lattice.spacing, lattice.nodes, strict=True)),
            indexing="ij",
        ),
        axis=-1,
    )  # fmt: skip
    slope = rng.normal(0, 0.1, (ndim, ndim))
    field = lattice.field(nodes @ slope + 8 + rng.normal(0, 0.1, nodes.shape))
    points = rng.uniform(0, 50, (200, ndim))
    affine, rest = split_affine(Affine.identity(ndim), field, points)
    np.testing.assert_allclose(affine(points) + rest(points), points + field(points), atol=1e-9)
    np.testing.assert_allclose(affine.matrix - np.eye(ndim), slope.T, atol=0.02)
    assert np.abs(rest(points)).max() < 0.3


def test_mean_spacing() -> None:
    grid = np.argwhere(np.ones((4, 5, 6))) * 3.0
    assert mean_spacing(grid) == pytest.approx(3)
    # Points that are there twice say nothing of how far points are apart.
    assert mean_spacing(np.repeat(grid, 2, axis=0)) == pytest.approx(3)
    assert mean_spacing(np.concatenate([grid, grid[:7]])) == pytest.approx(3)
    assert mean_spacing(np.ones((5, 2))) == 1
    assert mean_spacing(np.ones((1, 2))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spacing": 0.0}, "must be > 0"),
        ({"smoothing": np.nan}, "must be >= 0"),
        ({"weight": [1.0]}, "One number >= 0 a pair"),
        ({"weight": np.full(9, np.nan)}, "One number >= 0 a pair"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    points = np.random.default_rng(6).uniform(0, 9, (9, 2))
    with pytest.raises(InputError) as caught:
        fit_field(points, points, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
