"""Tests of the warp of arrays and blocks against an obviously right twin."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.prefilter import PREFILTER_RADIUS
from tilereg.transform import Affine, DisplacementField, Transform
from tilereg.warping import ORDERS, WarpPlan, source_window, warp_array, warp_block
from tilereg.windows import Window, iter_windows

FLOATS = [np.float16, np.float32, np.float64]
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64]


def positions_of(transform: Transform, grid: Grid, moving_grid: Grid) -> NDArray[np.float64]:
    """Return where in the moving volume every voxel of a grid comes from, (N, D)."""
    index = np.indices(grid.shape).reshape(grid.ndim, -1).T
    return moving_grid.to_index(transform(grid.to_world(index)))


def twin(
    image: NDArray[Any],
    transform: Transform,
    grid: Grid,
    moving_grid: Grid,
    order: int,
    fill_value: float = 0,
) -> NDArray[np.float64]:
    """Return the warped image in float64, voxel by voxel as the rule says."""
    position = positions_of(transform, grid, moving_grid)
    last = np.asarray(image.shape) - 1
    inside = ((position >= -0.5) & (position <= last + 0.5)).all(axis=1)
    position = np.clip(position, 0, last)
    values = image.astype(np.float64)
    if order == 0:
        nearest = np.minimum(np.floor(position + 0.5).astype(int), last)
        out = values[tuple(nearest.T)]
    else:
        if order == 3:
            for axis in range(image.ndim):
                if image.shape[axis] > 1:
                    values = ndimage.spline_filter1d(values, 3, axis=axis, mode="mirror")
        out = np.zeros(len(position))
        reach = (0, 1) if order == 1 else (-1, 0, 1, 2)
        first = np.floor(position).astype(int)
        for offset in itertools.product(reach, repeat=image.ndim):
            tap = first + offset
            distance = np.abs(position - tap)
            weight = np.prod(hat(distance) if order == 1 else bell(distance), axis=1)
            out += weight * values[tuple(fold(tap, last).T)]
    return np.where(inside, out, fill_value).reshape(grid.shape)


def hat(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the linear B-spline at distances."""
    return np.maximum(0, 1 - d)


def bell(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic B-spline at distances up to two."""
    return np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / 6, np.maximum(0, 2 - d) ** 3 / 6)


def fold(index: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mirror indices at 0 and at `last`."""
    period = np.maximum(2 * last, 1)
    index = np.abs(index) % period
    return np.where(last == 0, 0, np.where(index > last, 2 * last - index, index))


def random_transform(rng: np.random.Generator, grid: Grid, amount: float = 1.5) -> Transform:
    """Return a slight rotation, scaling and shift with a random lattice, around a grid's middle."""
    ndim = grid.ndim
    low, high = grid.bounds
    matrix = np.eye(ndim) + rng.normal(0, 0.05, (ndim, ndim))
    middle = (low + high) / 2
    affine = Affine(matrix, middle - matrix @ middle + rng.normal(0, 0.5, ndim))
    nodes = tuple(rng.integers(5, 9, ndim))
    spacing = (high - low + 1) / (np.array(nodes) - 3.5)
    coefficients = rng.normal(0, amount, (*nodes, ndim))
    return Transform(affine, DisplacementField(coefficients, low - 1.2 * spacing, spacing))


def random_image(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return noise over much of the type's range."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(0, 10, shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    info = np.iinfo(dtype)
    noise = rng.integers(info.min, info.max, shape, dtype=dtype.newbyteorder("="), endpoint=True)
    return noise.astype(dtype)


GRIDS = {
    "3d": (
        Grid(shape=(17, 26, 33), spacing=(2.0, 0.7, 0.5), origin=(5.0, -3.0, 11.0)),
        Grid(shape=(40, 19, 23), spacing=(0.9, 1.1, 0.8), origin=(4.0, -4.0, 10.0)),
    ),
    "one plane": (
        Grid(shape=(1, 30, 41), spacing=(3.0, 0.7, 0.5)),
        Grid(shape=(1, 24, 23), spacing=(3.0, 0.9, 0.8), origin=(0.1, -1.0, 0.5)),
    ),
    "2d": (
        Grid(shape=(31, 42), spacing=(0.7, 0.5), origin=(-3.0, 11.0)),
        Grid(shape=(19, 23), spacing=(1.1, 0.8), origin=(-4.0, 10.0)),
    ),
    "few voxels": (
        Grid(shape=(5, 4, 7), spacing=(1.0, 1.0, 0.5)),
        Grid(shape=(2, 3, 4), spacing=(1.5, 1.0, 0.8)),
    ),
}


@pytest.fixture(params=GRIDS)
def grids(request: pytest.FixtureRequest) -> tuple[Grid, Grid]:
    """Return an output grid and a moving grid of other spacing, origin and shape."""
    return GRIDS[request.param]


@pytest.mark.parametrize("order", ORDERS)
def test_equals_the_twin(grids: tuple[Grid, Grid], order: int) -> None:
    grid, moving_grid = grids
    rng = np.random.default_rng(1)
    transform = random_transform(rng, grid, 0.2 if grid.shape[0] == 1 else 1.5)
    image = random_image(rng, moving_grid.shape, np.float64)
    expected = twin(image, transform, grid, moving_grid, order, -7)
    result = warp_array(image, transform, like=grid, grid=moving_grid, order=order, fill_value=-7)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=2e-5 if order == 3 else 1e-9)
    share = (expected != -7).mean()
    assert 0.2 < share < 1.0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.bool_, *INTEGERS, *FLOATS, ">u2", ">f4"])
def test_every_type_equals_the_twin(dtype: Any, order: int) -> None:
    grid, moving_grid = GRIDS["3d"]
    rng = np.random.default_rng(2)
    transform = random_transform(rng, grid)
    image = random_image(rng, moving_grid.shape, dtype)
    exact = twin(image, transform, grid, moving_grid, order, 1)
    result = warp_array(image, transform, like=grid, grid=moving_grid, order=order, fill_value=1)
    assert result.dtype == image.dtype.newbyteorder("=")
    if result.dtype.kind == "f":
        digits = {2: 1e-3, 4: 1e-6, 8: 1e-12}[result.dtype.itemsize]
        np.testing.assert_allclose(
            result, exact, rtol=digits, atol=2e-5 if order == 3 else 10 * digits
        )
        return
    low, high = (0, 1) if result.dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    exact = np.clip(exact, low, high)
    # Half a unit of rounding, and the digits of float64 or of the cut-off prefilter.
    slack = 0.5 + (high - low) * (2e-6 if order == 3 else 1e-13) + 1e-6
    assert np.abs(result.astype(np.float64) - exact).max() <= slack


def test_integers_round_half_to_even() -> None:
    image = np.array([[0, 1, 2, 3, 4]], dtype=np.uint16)
    half = Transform(Affine(np.eye(2), [0.0, 0.5]))
    for dtype in (np.uint16, np.int32):
        result = warp_array(image.astype(dtype), half, like=Grid(shape=(1, 4)))
        np.testing.assert_array_equal(result, [[0, 2, 2, 4]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_cubic_overshoot_saturates(dtype: Any) -> None:
    info = np.iinfo(dtype)
    image = np.full((1, 40), info.min, dtype=dtype)
    image[:, 20:] = info.max
    shift = Transform(Affine(np.eye(2), [0.0, 0.4]))
    result = warp_array(image, shift, like=Grid(shape=(1, 39)), order=3)
    step = result[0].astype(np.float64)
    assert step[:19].max() < (float(info.min) + float(info.max)) / 2
    assert step[20:].min() > (float(info.min) + float(info.max)) / 2


@pytest.mark.parametrize("dtype", [np.bool_, *INTEGERS, *FLOATS])
@pytest.mark.parametrize("order", [0, 1])
def test_identity_reproduces_the_image_exactly(dtype: Any, order: int) -> None:
    if order == 1 and np.dtype(dtype).itemsize == 8 and np.dtype(dtype).kind in "iu":
        pytest.skip("Order 1 passes 64-bit integers through float64.")
    rng = np.random.default_rng(3)
    grid = Grid(shape=(7, 8, 9), spacing=(0.3, 0.11, 0.7), origin=(0.1, 100.3, -7.7))
    image = random_image(rng, grid.shape, dtype)
    if image.dtype.kind == "f":
        image[2, 3, 4], image[0, 0, 0], image[6, 7, 8] = np.nan, np.inf, -np.inf
    result = warp_array(image, Transform.identity(3), like=grid, grid=grid, order=order)
    np.testing.assert_array_equal(result, image)


def test_identity_of_order_3_reproduces_the_image() -> None:
    image = np.random.default_rng(4).normal(size=(20, 21, 22))
    grid = Grid(shape=image.shape, spacing=(0.3, 0.11, 0.7), origin=(0.1, 100.3, -7.7))
    result = warp_array(image, Transform.identity(3), like=grid, grid=grid, order=3)
    np.testing.assert_allclose(result, image, atol=3e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_constant_displacement_is_a_shift(order: int) -> None:
    rng = np.random.default_rng(5)
    image = random_image(rng, (9, 10, 11), np.uint16)
    shift = np.array([1.0, -2.0, 3.0])
    field = DisplacementField(np.broadcast_to(shift, (4, 1, 6, 3)), [0, 0, 0], [5, 5, 5])
    result = warp_array(
        image, Transform(Affine.identity(3), field), like=Grid(shape=image.shape), order=order
    )
    np.testing.assert_array_equal(result[:-1, 2:, :-3], image[1:, :-2, 3:])
    assert not result[-1:].any()
    assert not result[:, :2].any()
    assert not result[:, :, -3:].any()


@pytest.mark.parametrize("order", ORDERS)
def test_affine_equals_scipy_in_the_interior(order: int) -> None:
    rng = np.random.default_rng(6)
    image = rng.normal(size=(40, 41, 42))
    matrix = np.eye(3) + rng.normal(0, 0.08, (3, 3))
    offset = 20 - matrix @ [20, 20, 20]
    # Orders up to 1 agree wherever nothing lies outside; 3 where the other's cut-off has decayed.
    expected = ndimage.affine_transform(image, matrix, offset, order=order, cval=np.nan)
    result = warp_array(
        image, Transform(Affine(matrix, offset)), like=Grid(shape=image.shape), order=order
    )
    inner = (slice(6, -6),) * 3
    known = np.isfinite(expected[inner])
    assert known.mean() > 0.9
    np.testing.assert_allclose(result[inner][known], expected[inner][known], atol=3e-6)


def test_polynomials_are_reproduced() -> None:
    z, y, x = np.indices((30, 30, 30)).astype(np.float64)
    grid = Grid(shape=(20, 20, 20), origin=(5.0, 5.0, 5.0))
    shift = np.array([0.3, -0.4, 0.25])
    transform = Transform(Affine(np.eye(3), shift))
    moved = [v[5:25, 5:25, 5:25] + s for v, s in zip((z, y, x), shift, strict=True)]
    linear = warp_array(z - 2 * y + 3 * x, transform, like=grid)
    np.testing.assert_allclose(linear, moved[0] - 2 * moved[1] + 3 * moved[2], atol=1e-11)
    cubic = warp_array((x / 10) ** 3 - z * y / 100, transform, like=grid, order=3)[:, :, 8:-8]
    expected = ((moved[2] / 10) ** 3 - moved[0] * moved[1] / 100)[:, :, 8:-8]
    # The rims' mirroring is felt inside with the filter's decay.
    np.testing.assert_allclose(cubic, expected, atol=2e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_constant_images_stay_constant(order: int) -> None:
    grid, moving_grid = GRIDS["3d"]
    transform = random_transform(np.random.default_rng(7), grid)
    image = np.full(moving_grid.shape, 12345, dtype=np.uint16)
    result = warp_array(image, transform, like=grid, grid=moving_grid, order=order)
    assert set(np.unique(result)) == {0, 12345}


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_labels_are_exact_beyond_the_digits_of_a_float(dtype: Any) -> None:
    info = np.iinfo(dtype)
    image = np.array([[info.max, info.max - 1, info.min, info.min + 1]], dtype=dtype)
    shift = Transform(Affine(np.eye(2), [0.0, 1.2]))
    result = warp_array(image, shift, like=Grid(shape=(1, 4)), order=0, fill_value=info.max - 2)
    np.testing.assert_array_equal(
        result, np.array([[info.max - 1, info.min, info.min + 1, info.max - 2]], dtype=dtype)
    )
    linear = warp_array(image, shift, like=Grid(shape=(1, 4)), order=1, fill_value=info.max)
    assert linear[0, 3] == info.max


@pytest.mark.parametrize(("order", "radius"), [(0, 1), (1, 1), (3, 2 + PREFILTER_RADIUS)])
def test_nan_stays_where_it_is_needed(order: int, radius: int) -> None:
    image = np.random.default_rng(8).normal(size=(40, 45))
    holed = image.copy()
    holed[20, 25] = np.nan
    shift = Transform(Affine(np.eye(2), [0.2, -0.3]))
    like = Grid(shape=image.shape)
    whole = warp_array(image, shift, like=like, order=order)
    result = warp_array(holed, shift, like=like, order=order)
    hole = np.argwhere(np.isnan(result))
    assert len(hole)
    assert np.abs(hole - [20, 25]).max() <= radius
    known = ~np.isnan(result)
    np.testing.assert_array_equal(result[known], whole[known])


def test_rule_at_the_rim() -> None:
    image = np.array([[10.0, 20.0, 30.0]])
    like = Grid(shape=(1, 15), spacing=(1.0, 0.25), origin=(0.0, -0.75))
    nearest = warp_array(image, Transform.identity(2), like=like, order=0, fill_value=-1)
    linear = warp_array(image, Transform.identity(2), like=like, order=1, fill_value=-1)
    x = like.to_world(np.stack([np.zeros(15), np.arange(15)], axis=1))[:, 1]
    outside = (x < -0.5) | (x > 2.5)
    np.testing.assert_array_equal(linear[0], np.where(outside, -1, 10 + 10 * np.clip(x, 0, 2)))
    np.testing.assert_array_equal(
        nearest[0], np.where(outside, -1, 10 + 10 * np.minimum(np.floor(x + 0.5), 2))
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("chunks", [(1, 1, 1), ((3, 1, 9, 4), (13, 13), (1, 31, 1)), (17, 5, 33)])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_union_of_blocks_is_the_whole_to_the_last_bit(order: int, chunks: Any, dtype: Any) -> None:
    grid, moving_grid = GRIDS["3d"]
    if chunks == (1, 1, 1):
        grid = grid.crop(Window((3, 5, 8), (8, 11, 15)))
    rng = np.random.default_rng(9)
    transform = random_transform(rng, GRIDS["3d"][0])
    image = random_image(rng, moving_grid.shape, dtype)
    plan = WarpPlan(
        transform=transform, grid=grid, moving_grid=moving_grid, dtype=image.dtype, order=order
    )
    whole = warp_array(image, transform, like=grid, grid=moving_grid, order=order)
    union = np.empty_like(whole)
    for task in plan.tasks(iter_windows(grid.shape, chunks)):
        block = plan.warp(image[task.source.slices], task.source, task.window)
        union[task.window.slices] = block
    np.testing.assert_array_equal(union, whole)


def needed_window(
    transform: Transform, grid: Grid, window: Window, moving_grid: Grid, order: int
) -> Window:
    """Return the window that the block's voxels need, found voxel by voxel."""
    position = positions_of(transform, grid.crop(window), moving_grid)
    last = np.asarray(moving_grid.shape) - 1
    inside = ((position >= -0.5) & (position <= last + 0.5)).all(axis=1)
    position = np.clip(position[inside], 0, last)
    low, high = position.min(axis=0), position.max(axis=0)
    if order == 0:
        found = np.floor(low + 0.5), np.floor(high + 0.5)
    else:
        reach = 1 + PREFILTER_RADIUS if order == 3 else 0
        found = np.floor(low) - reach, np.ceil(high) + reach
    start, stop = (np.asarray(v, dtype=int) for v in found)
    return Window(tuple(start.tolist()), tuple((stop + 1).tolist())).clip(moving_grid.shape)


@pytest.mark.parametrize("order", ORDERS)
def test_source_window_is_a_true_bound(order: int) -> None:
    rng = np.random.default_rng(10)
    grid = Grid(shape=(30, 40, 50), spacing=(1.0, 0.7, 0.5))
    moving_grid = Grid(shape=(60, 50, 40), spacing=(0.6, 0.6, 0.6), origin=(1.0, 2.0, 3.0))
    transform = random_transform(rng, grid, 2.0)
    for _ in range(40):
        start = rng.integers(0, np.array(grid.shape) - 2)
        stop = np.minimum(start + rng.integers(1, 25, 3), grid.shape)
        window = Window(tuple(start.tolist()), tuple(stop.tolist()))
        bound = source_window(transform, grid, window, moving_grid, order)
        position = positions_of(transform, grid.crop(window), moving_grid)
        inside = ((position >= -0.5) & (position <= np.array(moving_grid.shape) - 0.5)).all(axis=1)
        if not inside.any():
            continue
        needed = needed_window(transform, grid, window, moving_grid, order)
        assert bound.intersect(needed) == needed


def bump(height: float) -> tuple[Transform, Grid]:
    """Return a displacement along x inside of block 64..128 that its faces do not see."""
    coefficients = np.zeros((24, 24, 24, 3))
    # Nodes lie at 16 (k - 1): support of node 7 is 64..128, its height 8 / 27 of the coefficient.
    coefficients[7, 7, 7, 2] = height * 27 / 8
    field = DisplacementField(coefficients, [-16.0] * 3, [16.0] * 3)
    return Transform(Affine.identity(3), field), Grid(shape=(256, 256, 256))


def test_bump_inside_of_a_block_is_seen() -> None:
    transform, grid = bump(40.0)
    window = Window((64, 64, 64), (128, 128, 128))
    faces = np.argwhere(np.ones((65, 65, 65))) + 64.0
    on_faces = faces[((faces == 64) | (faces == 128)).any(axis=1)]
    np.testing.assert_allclose(transform(on_faces), on_faces)
    bound = source_window(transform, grid, window, grid, 1)
    furthest = transform([[96.0, 96.0, x] for x in range(64, 128)])[:, 2].max()
    assert furthest > 130
    assert bound.stop[2] > furthest
    # Neither read in vain along the axes that do not move ...
    assert bound.start[:2] == (64, 64)
    assert bound.stop[:2] == (128, 128)
    # ... nor beyond the largest coefficient along the one that does.
    assert bound.stop[2] < 128 + 40 * 27 / 8
    image = np.random.default_rng(11).integers(0, 60000, grid.shape, dtype=np.uint16)
    part = Window((90, 90, 64), (100, 100, 128))
    source = source_window(transform, grid, part, grid, 1)
    result = warp_block(image[source.slices], source, transform, grid, part, grid)
    expected = twin(image, transform, grid.crop(part), grid, 1)
    np.testing.assert_array_equal(result, np.rint(expected))


def test_little_is_read_in_vain() -> None:
    # A field as registrations have: a few voxels over some hundred, and a rotation of 3 degrees.
    rng = np.random.default_rng(12)
    grid = Grid(shape=(256, 256, 256))
    angle = np.deg2rad(3)
    matrix = np.eye(3)
    matrix[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = Affine(matrix, 128 - matrix @ [128, 128, 128])
    smooth = ndimage.gaussian_filter(rng.normal(size=(14, 14, 14, 3)), (1.5, 1.5, 1.5, 0))
    coefficients = 4 * smooth / smooth.std()
    field = DisplacementField(coefficients, [-25.0] * 3, [25.0] * 3)
    transform = Transform(affine, field)
    num_read = num_needed = 0
    for chunk in iter_windows(grid.shape, (64, 64, 64)):
        if not all(0 < i < 3 for i in chunk.index):
            continue
        num_read += source_window(transform, grid, chunk.window, grid, 1).size
        num_needed += needed_window(transform, grid, chunk.window, grid, 1).size
    assert num_read < 1.2 * num_needed


def test_cells_bound_tighter_than_the_block() -> None:
    # A field that undoes the affine: positions barely vary, though both parts do.
    grid = Grid(shape=(128, 128, 128))
    steps = 10.0 * (np.arange(17) - 1)
    coefficients = np.zeros((17, 17, 17, 3))
    coefficients[..., 2] = -0.2 * steps
    transform = Transform(
        Affine(np.eye(3), np.zeros(3)), DisplacementField(coefficients, [-10.0] * 3, [10.0] * 3)
    )
    bound = source_window(transform, grid, grid.window, grid, 1)
    assert bound.shape[2] < 0.8 * 128 + 10
    low, high = transform.bounds(*grid.bounds)
    assert high[2] - low[2] > 128


@pytest.mark.parametrize("order", ORDERS)
def test_whole_shifts_read_no_more_than_they_move(order: int) -> None:
    grid = Grid(shape=(100, 100), spacing=(0.3, 0.7), origin=(5.0, -2.0))
    window = Window((40, 40), (60, 60))
    bound = source_window(Transform.identity(2), grid, window, grid, order)
    assert bound == window.pad(0 if order < 3 else 1 + PREFILTER_RADIUS)


@pytest.mark.parametrize("order", ORDERS)
def test_far_outside_nothing_is_read(order: int) -> None:
    grid = Grid(shape=(8, 8, 8))
    for far in (30.0, -30.0, 1e30):
        transform = Transform(Affine(np.eye(3), [0.0, far, 0.0]))
        bound = source_window(transform, grid, grid.window, grid, order)
        assert bound.is_empty
        source = np.empty(bound.shape, dtype=np.int16)
        result = warp_block(
            source, bound, transform, grid, grid.window, grid, order=order, fill_value=-5
        )
        assert result.dtype == np.int16
        assert (result == -5).all()


@pytest.mark.parametrize("order", ORDERS)
def test_window_too_small_is_refused(order: int) -> None:
    grid = Grid(shape=(60, 60))
    image = np.ones(grid.shape, dtype=np.float32)
    small = Window((0, 0), (60, 40))
    with pytest.raises(InputError, match=r"need voxels outside of source window \(0, 0\)"):
        warp_block(
            image[small.slices],
            small,
            Transform.identity(2),
            grid,
            grid.window,
            grid,
            order=order,
        )


@pytest.mark.parametrize("order", ORDERS)
def test_larger_windows_change_nothing(order: int) -> None:
    grid, moving_grid = GRIDS["3d"]
    rng = np.random.default_rng(13)
    transform = random_transform(rng, grid)
    image = random_image(rng, moving_grid.shape, np.float32)
    part = Window((4, 9, 10), (9, 14, 21))
    exact = source_window(transform, grid, part, moving_grid, order)
    results = [
        warp_block(image[w.slices], w, transform, grid, part, moving_grid, order=order)
        for w in (exact, exact.pad(2).clip(image.shape), moving_grid.window)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("unit", [1024.0, 1 / 1024])
def test_units_change_nothing(order: int, unit: float) -> None:
    grid, moving_grid = GRIDS["3d"]
    rng = np.random.default_rng(14)
    transform = random_transform(rng, grid)
    image = random_image(rng, moving_grid.shape, np.float32)

    def scaled(old: Grid) -> Grid:
        return Grid(
            shape=old.shape,
            spacing=tuple(unit * s for s in old.spacing),
            origin=tuple(unit * o for o in old.origin),
        )

    assert transform.field is not None
    field = DisplacementField(
        unit * transform.field.coefficients,
        unit * transform.field.origin,
        unit * transform.field.spacing,
    )
    other = Transform(Affine(transform.affine.matrix, unit * transform.affine.offset), field)
    np.testing.assert_array_equal(
        warp_array(image, other, like=scaled(grid), grid=scaled(moving_grid), order=order),
        warp_array(image, transform, like=grid, grid=moving_grid, order=order),
    )


def test_axis_of_one_node_is_constant() -> None:
    rng = np.random.default_rng(15)
    grid = Grid(shape=(10, 20, 21))
    row = rng.normal(0, 2, (1, 7, 1, 3))
    image = random_image(rng, grid.shape, np.float64)
    single = DisplacementField(row, [0.0, -5.0, 0.0], [5.0, 5.0, 5.0])
    many = DisplacementField(
        np.broadcast_to(row, (6, 7, 8, 3)), [-5.0, -5.0, -5.0], [5.0, 5.0, 5.0]
    )
    results = [
        warp_array(image, Transform(Affine.identity(3), f), like=grid) for f in (single, many)
    ]
    np.testing.assert_allclose(*results, atol=1e-12)


def test_plane_and_volume_of_one_plane_agree() -> None:
    grid, moving_grid = GRIDS["2d"]
    rng = np.random.default_rng(16)
    flat = random_transform(rng, grid)
    assert flat.field is not None
    image = random_image(rng, moving_grid.shape, np.uint16)
    matrix, offset = np.eye(3), np.zeros(3)
    matrix[1:, 1:], offset[1:] = flat.affine.matrix, flat.affine.offset
    coefficients = np.zeros((1, *flat.field.nodes, 3))
    coefficients[0, ..., 1:] = flat.field.coefficients
    deep = Transform(
        Affine(matrix, offset),
        DisplacementField(coefficients, [0, *flat.field.origin], [1, *flat.field.spacing]),
    )

    def raised(old: Grid) -> Grid:
        return Grid(shape=(1, *old.shape), spacing=(2.0, *old.spacing), origin=(0.0, *old.origin))

    for order in ORDERS:
        expected = warp_array(image, flat, like=grid, grid=moving_grid, order=order)
        result = warp_array(
            image[None], deep, like=raised(grid), grid=raised(moving_grid), order=order
        )
        np.testing.assert_array_equal(result[0], expected)


def test_other_output_types_saturate_and_hide_nan() -> None:
    grid = Grid(shape=(1, 5))
    image = np.array([[-300.4, 0.5, 1.5, np.nan, 1e9]])
    for order in (0, 1):
        result = warp_block(
            image,
            grid.window,
            Transform.identity(2),
            grid,
            grid.window,
            grid,
            order=order,
            fill_value=7,
            out_dtype=np.uint8,
        )
        np.testing.assert_array_equal(result, np.array([[0, 0, 2, 7, 255]], dtype=np.uint8))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float64, np.int64])
def test_bytes_needed_holds(order: int, dtype: Any) -> None:
    rng = np.random.default_rng(17)
    grid = Grid(shape=(96, 96, 96), spacing=(0.9, 1.0, 1.0))
    moving_grid = Grid(shape=(96, 96, 96))
    transform = random_transform(rng, grid)
    image = random_image(rng, moving_grid.shape, dtype)
    plan = WarpPlan(
        transform=transform, grid=grid, moving_grid=moving_grid, dtype=image.dtype, order=order
    )
    window = Window((8, 8, 8), (88, 88, 88))
    plan.warp(image, moving_grid.window, Window((8, 8, 8), (9, 9, 9)))  # Compile first.
    tracemalloc.start()
    try:
        source = plan.source_window(window)
        plan.warp(image[source.slices].copy(), source, window)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    promise = plan.bytes_needed(source.shape, window.shape)
    assert 0.5 * promise < peak <= promise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 2}, "Invalid order 2. Use 0"),
        ({"fill_value": -1}, "Invalid fill_value -1. An image of type uint16 holds whole numbers"),
        ({"fill_value": 0.5}, "Invalid fill_value 0.5"),
        ({"fill_value": np.nan}, "Invalid fill_value nan"),
        ({"fill_value": 2**16}, "whole numbers from 0 to 65535"),
        ({"dtype": np.dtype(np.complex64)}, "Invalid type complex64 of voxels"),
        ({"transform": Transform.identity(2)}, "The transform has 2 axes, the output grid 3"),
        ({"moving_grid": Grid(shape=(3, 3))}, "the moving grid 2. They must be the same"),
    ],
)
def test_plans_are_checked(change: dict[str, Any], message: str) -> None:
    grid = Grid(shape=(4, 4, 4))
    given = {
        "transform": Transform.identity(3),
        "grid": grid,
        "moving_grid": grid,
        "dtype": np.dtype(np.uint16),
    }
    with pytest.raises(InputError, match=message):
        WarpPlan(**(given | change))


def test_shapes_are_checked() -> None:
    grid = Grid(shape=(4, 4))
    with pytest.raises(InputError, match=r"The image has shape \(3, 3\), its grid has \(4, 4\)"):
        warp_array(np.zeros((3, 3)), Transform.identity(2), like=grid, grid=grid)
    with pytest.raises(InputError, match=r"The source block has shape \(3, 3\)"):
        warp_block(np.zeros((3, 3)), grid.window, Transform.identity(2), grid, grid.window, grid)
