"""Maps and their inverses against plain twins: SciPy's B-splines and finite differences."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from tilereg.errors import InputError
from tilereg.kernels import bspline
from tilereg.transform import Affine, DisplacementField, InverseTransform, Transform

Floats = NDArray[np.float64]

NODES = [(7, 5, 6), (1, 6, 5), (4, 1, 1), (6, 5), (1, 4), (1, 1), (1, 1, 1)]


def make_field(nodes: tuple[int, ...], *, seed: int = 0, size: float = 1.0) -> DisplacementField:
    rng = np.random.default_rng(seed)
    ndim = len(nodes)
    return DisplacementField(
        rng.normal(0, size, (*nodes, ndim)), rng.uniform(-30, 30, ndim), rng.uniform(5, 12, ndim)
    )


def domain_of(field: DisplacementField) -> tuple[Floats, Floats]:
    """Return the domain, an axis of one node made one spacing wide."""
    low, high = field.domain
    return low, np.where(high > low, high, low + field.spacing)


def inside(field: DisplacementField, count: int, *, margin: float = 0.0, seed: int = 1) -> Floats:
    """Return random points of the domain, `margin` spacings larger on all sides."""
    low, high = domain_of(field)
    reach = margin * field.spacing
    return np.random.default_rng(seed).uniform(low - reach, high + reach, (count, field.ndim))


def plain_value(field: DisplacementField, points: Floats) -> Floats:
    """Return u as the tensor product of SciPy's cubic B-splines of all nodes."""
    low, high = field.domain
    place = (np.clip(points, low, high) - field.origin) / field.spacing
    value = np.broadcast_to(field.coefficients, (len(points), *field.coefficients.shape))
    for axis, num_nodes in enumerate(field.nodes):
        weights = np.ones((len(points), 1))
        if num_nodes > 1:
            weights = np.stack(
                [
                    BSpline.basis_element(np.arange(k - 2, k + 3), extrapolate=False)(
                        # The last knot is not in the support that SciPy evaluates.
                        np.minimum(place[:, axis], num_nodes - 2 - 1e-13)
                    )
                    for k in range(num_nodes)
                ],
                axis=1,
            )
        weights = np.nan_to_num(weights)
        value = np.einsum("in,in...->i...", weights, value)
    return np.asarray(value)


@pytest.mark.parametrize("nodes", NODES)
def test_field_equals_scipy_bsplines(nodes: tuple[int, ...]) -> None:
    field = make_field(nodes)
    points = np.concatenate([inside(field, 200, margin=1.5), *map(np.atleast_2d, field.domain)])
    np.testing.assert_allclose(field(points), plain_value(field, points), atol=1e-11)


@pytest.mark.parametrize("nodes", NODES)
def test_jacobian_equals_finite_differences(nodes: tuple[int, ...]) -> None:
    field = make_field(nodes)
    low, high = domain_of(field)
    points = low + (high - low) * np.random.default_rng(3).uniform(0.01, 0.99, (100, field.ndim))
    step = 1e-4
    plain = np.stack(
        [(field(points + step * e) - field(points - step * e)) / (2 * step)
         for e in np.eye(field.ndim)],
        axis=-1,
    )  # fmt: skip
    np.testing.assert_allclose(field.jacobian(points), plain, atol=1e-6)


def test_weights_are_positive_and_sum_to_one() -> None:
    weights, slopes = np.empty(4), np.empty(4)
    for t in np.linspace(-1, 9, 301):
        first = bspline.locate(t, 9, weights)
        bspline.locate_derivative(t, 9, slopes)
        assert 0 <= first <= 5
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1, abs=1e-14)
        assert slopes.sum() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("nodes", [(6, 5, 4), (5, 7)])
def test_linear_coefficients_are_a_linear_field(nodes: tuple[int, ...]) -> None:
    field = make_field(nodes)
    matrix = np.random.default_rng(5).normal(size=(field.ndim, field.ndim))
    index = np.stack(np.meshgrid(*map(np.arange, nodes), indexing="ij"), axis=-1)
    linear = DisplacementField(
        (field.origin + field.spacing * index) @ matrix.T, field.origin, field.spacing
    )
    points = inside(field, 100)
    np.testing.assert_allclose(linear(points), points @ matrix.T, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("nodes", [(7, 5, 6), (1, 6, 5), (6, 5)])
def test_field_is_clamped_outside_of_its_domain(nodes: tuple[int, ...]) -> None:
    field = make_field(nodes)
    low, high = field.domain
    points = inside(field, 200, margin=5)
    outside = ((points < low) | (points > high)).any(axis=1)
    assert outside.sum() > 50
    varying = np.asarray(nodes) > 1
    nearest = np.where(varying, np.clip(points, low, high), points)
    np.testing.assert_allclose(field(points), field(nearest), atol=1e-12)
    beyond = points[(points > high + 1e-6)[:, -1]]
    assert not field.jacobian(beyond)[:, :, -1].any()


def test_a_single_node_is_constant_along_its_axis() -> None:
    field = make_field((1, 6, 5))
    points = inside(field, 50)
    moved = points + np.random.default_rng(2).uniform(-1e5, 1e5, (50, 1)) * [1, 0, 0]
    np.testing.assert_array_equal(field(points), field(moved))
    assert not field.jacobian(points)[:, :, 0].any()


def test_a_plane_equals_a_volume_of_one_plane() -> None:
    plane = make_field((6, 5))
    coefficients = np.concatenate([np.zeros((6, 5, 1)), plane.coefficients], axis=-1)[None]
    volume = DisplacementField(
        coefficients, np.concatenate([[3.0], plane.origin]), np.concatenate([[2.0], plane.spacing])
    )
    points = inside(plane, 50)
    raised = np.concatenate([np.full((50, 1), 17.0), points], axis=1)
    np.testing.assert_allclose(volume(raised)[:, 1:], plane(points), atol=1e-14)


@pytest.mark.parametrize("nodes", [(9, 8, 7), (1, 9, 8), (9, 8)])
def test_bounds_hold_every_point_of_random_boxes(nodes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    field = make_field(nodes, size=5)
    transform = Transform(Affine(np.eye(field.ndim) + rng.normal(0, 0.3, (field.ndim,) * 2),
                                 rng.normal(size=field.ndim)), field)  # fmt: skip
    low_corner, high_corner = domain_of(field)
    for _ in range(40):
        ends = rng.uniform(low_corner - 20, high_corner + 20, (2, field.ndim))
        low, high = ends.min(axis=0), ends.max(axis=0)
        points = np.concatenate([rng.uniform(low, high, (300, field.ndim)), [low, high]])
        for map_ in (field, transform):
            values = map_(points)
            smallest, largest = map_.bounds(low, high)
            assert (values >= smallest - 1e-12).all()
            assert (values <= largest + 1e-12).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_see_a_bump_in_the_middle_of_the_box(sign: int) -> None:
    coefficients = np.zeros((21, 21, 21, 3))
    coefficients[10, 10, 10] = sign * 30.0
    field = DisplacementField(coefficients, np.zeros(3), np.ones(3))
    corners = np.array(np.meshgrid(*[[2.0, 18.0]] * 3)).reshape(3, -1).T
    assert not field(corners).any()
    smallest, largest = field.bounds([2, 2, 2], [18, 18, 18])
    top = field([[10.0, 10.0, 10.0]])[0]
    assert (smallest <= top).all()
    assert (top <= largest).all()
    low, high = Transform(Affine.identity(3), field).bounds([2, 2, 2], [18, 18, 18])
    assert (low <= 10 + top).all()
    assert (10 + top <= high).all()


def test_bounds_of_a_point_are_those_of_its_support() -> None:
    coefficients = np.zeros((12, 12, 2))
    coefficients[:4] = 100.0
    field = DisplacementField(coefficients, np.zeros(2), np.ones(2))
    smallest, largest = field.bounds([6.2, 6.2], [6.3, 6.3])
    np.testing.assert_array_equal([smallest, largest], np.zeros((2, 2)))


def test_bounds_of_an_affine_map_are_attained_at_corners() -> None:
    affine = Affine([[1.0, -2.0], [0.5, 3.0]], [7.0, -7.0])
    low, high = affine.bounds([0, 0], [1, 2])
    corners = affine(np.array([[0, 0], [0, 2], [1, 0], [1, 2]]))
    np.testing.assert_allclose([low, high], [corners.min(axis=0), corners.max(axis=0)])


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_compose_and_inverse(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    one, two = (Affine(rng.normal(size=(ndim, ndim)), rng.normal(size=ndim)) for _ in range(2))
    points = rng.normal(size=(20, ndim))
    np.testing.assert_allclose(one.compose(two)(points), one(two(points)), atol=1e-12)
    np.testing.assert_allclose(one.inverse(one(points)), points, atol=1e-12)
    np.testing.assert_array_equal(Affine.identity(ndim)(points), points)


def test_what_a_map_holds_cannot_be_changed() -> None:
    matrix = np.eye(2)
    affine = Affine(matrix, [0.0, 0.0])
    matrix[0, 0] = 5
    assert affine.matrix[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        affine.matrix[0, 0] = 2


def smooth_transform(nodes: tuple[int, ...], *, offset: float = 0.0) -> Transform:
    """Return a strong map that does not fold."""
    ndim = len(nodes)
    rng = np.random.default_rng(6)
    field = make_field(nodes, size=1.2)
    matrix = np.linalg.qr(rng.normal(size=(ndim, ndim)))[0] @ np.diag(rng.uniform(0.8, 1.2, ndim))
    return Transform(Affine(matrix, rng.normal(size=ndim) + offset), field)


def test_transform_is_the_sum_of_its_parts() -> None:
    transform = smooth_transform((7, 5, 6))
    assert transform.field is not None
    points = inside(transform.field, 30, margin=2)
    plain = points @ transform.affine.matrix.T + transform.affine.offset
    np.testing.assert_allclose(transform(points), plain + transform.field(points), atol=1e-12)
    np.testing.assert_allclose(
        transform.jacobian(points),
        transform.affine.matrix + transform.field.jacobian(points),
        atol=1e-15,
    )


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("nodes", [(7, 5, 6), (1, 6, 5), (6, 5)])
def test_inverse_round_trip(nodes: tuple[int, ...], offset: float) -> None:
    transform = smooth_transform(nodes, offset=offset)
    assert transform.field is not None
    points = inside(transform.field, 3000, margin=1.0)
    assert (np.abs(np.linalg.det(transform.jacobian(points))) > 0.02).all()
    back = transform.inverse(transform(points))
    assert np.abs(back - points).max() < (1e-6 if offset == 0 else 1e-3)
    np.testing.assert_allclose(transform(back), transform(points), atol=1e-8 + 1e-9 * offset)


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_inverse_does_not_depend_on_the_unit(unit: float) -> None:
    transform = smooth_transform((7, 5, 6))
    field = transform.field
    assert field is not None
    scaled = Transform(
        Affine(transform.affine.matrix, transform.affine.offset * unit),
        DisplacementField(field.coefficients * unit, field.origin * unit, field.spacing * unit),
    )
    points = inside(field, 200)
    back = scaled.inverse(scaled(points * unit))
    np.testing.assert_allclose(back / unit, points, atol=1e-6)


def test_inverse_of_large_clouds_equals_that_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = smooth_transform((6, 5))
    assert transform.field is not None
    moved = transform(inside(transform.field, 500))
    whole = transform.inverse(moved)
    monkeypatch.setattr("tilereg.transform._CHUNK", 64)
    np.testing.assert_allclose(transform.inverse(moved), whole, atol=1e-6)


def test_inverse_of_no_points() -> None:
    transform = smooth_transform((6, 5))
    assert transform.inverse(np.empty((0, 2))).shape == (0, 2)
    assert transform(np.empty((0, 2))).shape == (0, 2)
    assert transform.inverse.inverse is transform
    assert transform.inverse.ndim == 2


def fold() -> Transform:
    """Return a map whose x axis runs back on itself: x + u with u falling faster than x rises."""
    coefficients = np.zeros((4, 16, 2))
    coefficients[:, :8, 1], coefficients[:, 8:, 1] = 8.0, -8.0
    field = DisplacementField(coefficients, np.zeros(2), np.array([10.0, 2.0]))
    return Transform(Affine.identity(2), field)


def test_inverse_of_a_fold_is_a_true_inverse_or_nan() -> None:
    transform = fold()
    assert np.linalg.det(transform.jacobian([[15.0, 15.0]]))[0] < 0
    x = np.linspace(-30, 60, 400)
    target = np.column_stack([np.full(400, 15.0), x])
    found = transform.inverse(target)
    reached = np.isfinite(found).all(axis=1)
    assert reached.mean() > 0.5
    np.testing.assert_allclose(transform(found[reached]), target[reached], atol=1e-6)
    assert np.isnan(found[~reached]).all()


def test_a_point_that_is_not_reached_is_nan_and_spoils_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transform = smooth_transform((7, 5, 6))
    assert transform.field is not None
    points = inside(transform.field, 300)
    whole = transform.inverse(transform(points))
    monkeypatch.setattr("tilereg.transform._MAX_NEWTON_STEPS", 2)
    hurried = transform.inverse(transform(points))
    reached = np.isfinite(hurried).all(axis=1)
    assert 0 < reached.sum() < 300
    assert np.isnan(hurried[~reached]).all()
    np.testing.assert_allclose(hurried[reached], whole[reached], atol=1e-6)


def test_a_purely_affine_inverse_is_exact() -> None:
    affine = Affine([[0.0, -1.0], [1.0, 0.0]], [3.0, 4.0])
    transform = Transform(affine)
    points = np.random.default_rng(0).normal(size=(10, 2))
    np.testing.assert_allclose(transform.inverse(transform(points)), points, atol=1e-14)
    assert isinstance(transform.inverse, InverseTransform)


ORIGIN, SPACING = np.zeros(2), np.ones(2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Affine(np.eye(3), [0.0, 0.0]), "(D, D) matrix"),
        (lambda: Affine(np.eye(4), np.zeros(4)), "D of 2 or 3"),
        (lambda: Affine(np.eye(2), 3.0), "(D,) offset"),
        (lambda: Affine(np.eye(2), [np.nan, 0.0]), "not finite"),
        (lambda: Affine([[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0]), "singular"),
        (lambda: Affine(np.zeros((2, 2)), [0.0, 0.0]), "singular"),
        (lambda: DisplacementField(np.zeros((4, 4, 3)), ORIGIN, SPACING), "(n_1, .., n_D, D)"),
        (lambda: DisplacementField(np.zeros((4, 4, 2)), np.zeros(3), SPACING), "spacing (2,)"),
        (lambda: DisplacementField(np.zeros((3, 4, 2)), ORIGIN, SPACING), "at least four"),
        (lambda: DisplacementField(np.full((4, 4, 2), np.inf), ORIGIN, SPACING), "not finite"),
        (lambda: DisplacementField(np.zeros((4, 4, 2)), ORIGIN, [1.0, 0.0]), "must be > 0"),
        (lambda: Transform(Affine.identity(3), make_field((4, 4))), "3 axes, the field has 2"),
        (lambda: Transform.identity(2)(np.zeros((5, 3))), "The transform has 2 axes"),
        (lambda: Transform.identity(2).inverse(np.zeros((5, 3))), "The transform has 2 axes"),
        (lambda: Transform.identity(2).jacobian(np.zeros(2)), "Points are an (N, 2)"),
        (lambda: Transform.identity(2)([[np.nan, 0.0]]), "not finite"),
    ],
)
def test_errors_name_the_rule_in_one_line(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


SCRIPT = """
import numpy as np
from tilereg.transform import DisplacementField
rng = np.random.default_rng(0)
field = DisplacementField(rng.normal(size=(4, 5, 4, 3)), np.zeros(3), np.ones(3))
points = rng.uniform(-1, 5, (20, 3))
np.save({out!r}, np.concatenate([field(points)[:, :, None], field.jacobian(points)], axis=-1))
"""


def test_kernels_equal_their_uncompiled_selves(tmp_path: object) -> None:
    out = f"{tmp_path}/plain.npy"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT.format(out=out)], env=environment, check=True)
    rng = np.random.default_rng(0)
    field = DisplacementField(rng.normal(size=(4, 5, 4, 3)), np.zeros(3), np.ones(3))
    points = rng.uniform(-1, 5, (20, 3))
    compiled = np.concatenate([field(points)[:, :, None], field.jacobian(points)], axis=-1)
    np.testing.assert_allclose(np.load(out), compiled, atol=1e-13)
