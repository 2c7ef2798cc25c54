"""Grid, windows and points: theorems."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from tilereg.errors import InputError, TileregError
from tilereg.grid import Grid
from tilereg.points import Spots, check_points
from tilereg.windows import ChunkWindow, Window, iter_windows, num_windows

GRIDS = [
    Grid(shape=(7, 40, 33), spacing=(0.6, 0.31, 0.3), origin=(-12.0, 4.5, 1e4)),
    Grid(shape=(1, 9, 10), spacing=(2.0, 0.1, 0.1)),
    Grid(shape=(64, 65), spacing=(0.5, 0.25), origin=(3.0, -7.0)),
]
CHUNKS = [(2, 16, 33), (7, 1, 11), ((3, 4), (1, 38, 1), (20, 13))]


def owners(points: NDArray[np.float64], units: list[ChunkWindow]) -> NDArray[np.int64]:
    """Return how many windows claim each point."""
    return np.sum([unit.window.contains(points) for unit in units], axis=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_world_and_index_are_inverse(grid: Grid) -> None:
    index = np.random.default_rng(0).uniform(-5, 80, (100, grid.ndim))
    np.testing.assert_allclose(grid.to_index(grid.to_world(index)), index, atol=1e-9)
    assert grid.to_world(np.zeros(grid.ndim)).tolist() == list(grid.origin)
    low, high = grid.bounds
    np.testing.assert_allclose(grid.to_index(high), np.array(grid.shape) - 1, atol=1e-9)
    assert low.tolist() == list(grid.origin)


@pytest.mark.parametrize("grid", GRIDS)
def test_cropping_leaves_voxels_in_place(grid: Grid) -> None:
    window = Window((0,) * (grid.ndim - 2) + (2, 3), (1,) * (grid.ndim - 2) + (8, 9))
    part = grid.crop(window)
    assert part.shape == window.shape
    index = np.random.default_rng(1).uniform(0, 6, (20, grid.ndim))
    np.testing.assert_allclose(
        part.to_world(index), grid.to_world(index + window.start), rtol=1e-12
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_coarsening_puts_voxels_at_the_means(grid: Grid) -> None:
    factors = (2, 3, 4)[-grid.ndim :]
    factors = tuple(f if n >= f else 1 for f, n in zip(factors, grid.shape, strict=True))
    coarse = grid.coarsen(factors)
    # Voxel (0, ..) of the coarse grid is the mean place of the voxels that it averages.
    block = np.moveaxis(np.indices(factors), 0, -1).reshape(-1, grid.ndim)
    np.testing.assert_allclose(coarse.origin, grid.to_world(block).mean(axis=0), rtol=1e-12)
    assert coarse.shape == tuple(n // f for n, f in zip(grid.shape, factors, strict=True))
    np.testing.assert_allclose(grid.coarsen(2).coarsen(2).spacing, grid.coarsen(4).spacing)
    np.testing.assert_allclose(grid.coarsen(2).coarsen(2).origin, grid.coarsen(4).origin)
    assert grid.coarsen(1) == grid


@pytest.mark.parametrize("grid", GRIDS)
def test_unit_changes_nothing_but_units(grid: Grid) -> None:
    nano = Grid(
        shape=grid.shape,
        spacing=tuple(1000 * s for s in grid.spacing),
        origin=tuple(1000 * o for o in grid.origin),
    )
    points = np.random.default_rng(2).uniform(-1, 9, (50, grid.ndim))
    np.testing.assert_allclose(nano.to_index(1000 * points), grid.to_index(points), atol=1e-9)
    assert (nano.contains(1000 * points) == grid.contains(points)).all()


def test_grid_contains_half_voxels() -> None:
    grid = Grid(shape=(4, 4), spacing=(2.0, 2.0))
    inside = grid.contains([[-1.0, 0.0], [-1.01, 0.0], [6.99, 0.0], [7.0, 0.0]])
    assert inside.tolist() == [True, False, True, False]
    assert grid.extent == (8.0, 8.0)
    assert grid.size == grid.window.size == 16


def test_grid_takes_numpy_numbers_and_compares() -> None:
    array = np.zeros((3, 4, 5))
    grid = Grid(shape=array.shape, spacing=tuple(np.array([1.0, 2.0, 3.0])))
    assert grid == Grid(shape=(3, 4, 5), spacing=(1, 2, 3), origin=(0, 0, 0))
    assert hash(grid) == hash(Grid(shape=(3, 4, 5), spacing=(1, 2, 3)))
    assert grid.axes == ("z", "y", "x")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (3,)}, "two or three axes"),
        ({"shape": (3, 3, 3, 3)}, "not 4"),
        ({"shape": (3, 0)}, "at least one voxel"),
        ({"shape": (3, 3), "spacing": (1.0,)}, "one number an axis"),
        ({"shape": (3, 3, 3), "spacing": (0.0, 0.2, 0.2)}, "axis 'z' is 0.0"),
        ({"shape": (3, 3), "spacing": (1.0, float("nan"))}, "axis 'x' is nan"),
        ({"shape": (3, 3), "origin": (0.0, float("inf"))}, "origin"),
    ],
)
def test_grid_says_what_is_wrong(arguments: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Grid(**arguments)


@pytest.mark.parametrize("factor", [0, (2, 2), (2, -1, 2)])
def test_grid_refuses_wrong_factors(factor: int | tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="factor"):
        GRIDS[0].coarsen(factor)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunks_partition_the_volume(chunks: tuple[int | tuple[int, ...], ...]) -> None:
    shape = GRIDS[0].shape
    units = list(iter_windows(shape, chunks))
    count = np.zeros(shape, dtype=int)
    for unit in units:
        count[unit.window.slices] += 1
    assert (count == 1).all()
    assert len(units) == num_windows(shape, chunks)
    assert [unit.number for unit in units] == list(range(len(units)))
    assert sorted(unit.index for unit in units) == [unit.index for unit in units]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_every_point_has_one_owner(chunks: tuple[int | tuple[int, ...], ...]) -> None:
    shape = np.array(GRIDS[0].shape)
    units = list(iter_windows(tuple(shape), chunks))
    rng = np.random.default_rng(3)
    points = rng.uniform(-0.5, shape - 0.5, (500, 3))
    # Points between voxels and at the very rim are where ownership goes wrong.
    halves = rng.integers(0, shape - 1, (200, 3)) + rng.choice([-0.5, 0.0, 0.5], (200, 3))
    rim = np.array([[-0.5, -0.5, -0.5], np.nextafter(shape - 0.5, 0)])
    points = np.vstack([points, halves, rim])
    assert (owners(points, units) == 1).all()
    assert (owners(np.array([[-0.51, 0, 0], shape - 0.5]), units) == 0).all()


def test_windows_are_walked_lazily() -> None:
    walk = iter_windows((10**6, 10**6, 10**6), (10, 10, 10**6))
    assert next(walk).window == Window((0, 0, 0), (10, 10, 10**6))
    assert num_windows((10**6, 10**6), (10, 10)) == 10**10


@pytest.mark.parametrize(("chunks", "words"), [((0, 3), "at least one"), (((3, 3), 3), "add up")])
def test_wrong_chunks_are_refused(chunks: tuple[int | tuple[int, ...], ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(iter_windows((7, 7), chunks))


def test_window_algebra() -> None:
    rng = np.random.default_rng(4)
    shape = (12, 15, 9)
    array = np.arange(np.prod(shape)).reshape(shape)
    for _ in range(50):
        low, other = rng.integers(-3, 12, (2, 3))
        one = Window(tuple(low.tolist()), tuple((low + rng.integers(0, 9, 3)).tolist()))
        two = Window(tuple(other.tolist()), tuple((other + rng.integers(0, 9, 3)).tolist()))
        assert one.intersect(two) == two.intersect(one) or one.intersect(two).is_empty
        assert one.pad(2).pad(-2) == one
        assert one.shift((1, -2, 3)).shift((-1, 2, -3)) == one
        assert one.relative_to(one) == Window.whole(one.shape)
        inside = one.clip(shape)
        assert inside.size == array[inside.slices].size
        padded = one.pad((1, 0, 2)).clip(shape)
        if not inside.is_empty:
            # A core cut out of its block is the core itself.
            block = array[padded.slices]
            assert (block[inside.relative_to(padded).slices] == array[inside.slices]).all()


def test_empty_windows() -> None:
    apart = Window((0, 0), (3, 3)).intersect(Window((5, 5), (9, 9)))
    assert apart.is_empty
    assert apart.size == 0
    assert apart.shape == (0, 0)
    assert np.ones((9, 9))[apart.slices].size == 0
    with pytest.raises(InputError, match="same number of axes"):
        Window((0,), (1, 1))


def test_errors_have_one_base() -> None:
    assert issubclass(InputError, TileregError)
    assert issubclass(InputError, ValueError)


def make_spots(count: int, ndim: int, seed: int) -> Spots:
    rng = np.random.default_rng(seed)
    return Spots(
        positions=rng.uniform(0, 9, (count, ndim)),
        sigma=rng.uniform(1, 2, count),
        intensity=rng.uniform(1, 2, count),
        response=rng.uniform(1, 2, count),
        localisation=rng.uniform(0, 1, count),
        chunk=rng.integers(0, 5, count),
    )


def test_taking_and_joining_spots() -> None:
    spots = make_spots(20, 3, seed=5)
    first = spots.chunk < 2
    joined = Spots.concatenate([spots.take(first), Spots.empty(3), spots.take(~first)])
    order = np.argsort(spots.chunk >= 2, kind="stable")
    for field in dataclasses.fields(Spots):
        value, found = getattr(spots, field.name), getattr(joined, field.name)
        if value is None:
            assert found is None
            continue
        expected = value[order]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert len(Spots.empty(2)) == 0
    assert (Spots.empty(2).ndim, spots.ndim) == (2, 3)


def test_columns_must_have_one_length() -> None:
    spots = make_spots(4, 2, seed=6)
    with pytest.raises(InputError, match=r"Columns of Spots differ.*'sigma': 3"):
        dataclasses.replace(spots, sigma=spots.sigma[:3])


def test_points_are_checked() -> None:
    checked = check_points([[1, 2], [3, 4]])
    assert checked.dtype == np.float64
    assert checked.flags.c_contiguous
    assert check_points(np.asfortranarray(np.ones((5, 3)))).flags.c_contiguous
    assert check_points(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros(3), r"Invalid shape \(3,\) of spots"),
        (np.zeros((3, 4)), r"axes in the order z, y, x"),
        (np.array([[0, 0], [0, np.nan], [np.inf, 0]]), "2 of 3 spots are not finite.*row 1"),
    ],
)
def test_wrong_points_are_explained(points: NDArray[np.float64], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_points(points, "spots")
