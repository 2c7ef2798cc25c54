"""Tests of the lazy warp, of the warp of volumes by tasks, and of its memory."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray

from tilereg.errors import ImageError, InputError, ResourceError
from tilereg.grid import Grid
from tilereg.lazy.volume import warp_volume
from tilereg.lazy.warp import warp
from tilereg.memory import check_memory, cut_to_fit, task_bytes, warp_window
from tilereg.progress import Silent
from tilereg.spots import ArrayReader
from tilereg.transform import Affine, DisplacementField, Transform
from tilereg.warping import ORDERS, WarpPlan, warp_array
from tilereg.windows import ChunkWindow, Window, iter_windows

GRID = Grid(shape=(17, 26, 33), spacing=(2.0, 0.7, 0.5), origin=(5.0, -3.0, 11.0))
MOVING_GRID = Grid(shape=(40, 19, 23), spacing=(0.9, 1.1, 0.8), origin=(4.0, -4.0, 10.0))


def make_transform(amount: float = 1.5) -> Transform:
    """Return a slight rotation and a random lattice."""
    rng = np.random.default_rng(0)
    matrix = np.eye(3) + rng.normal(0, 0.04, (3, 3))
    middle = np.array([21.0, 6.0, 19.0])
    coefficients = rng.normal(0, amount, (8, 7, 6, 3))
    field = DisplacementField(coefficients, [-5.0, -9.0, 5.0], [8.0, 5.0, 6.0])
    return Transform(Affine(matrix, middle - matrix @ middle), field)


@pytest.fixture
def image() -> NDArray[np.uint16]:
    """Return a moving image."""
    rng = np.random.default_rng(1)
    return rng.integers(0, 60000, MOVING_GRID.shape, dtype=np.uint16)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("chunks", ["auto", 8, ((10, 7), (1, 25), (3, 30)), (17, 26, 1)])
@pytest.mark.parametrize("source_chunks", [-1, 7, ((1, 39), (19,), (20, 3))])
def test_lazy_equals_array(
    image: NDArray[np.uint16], order: int, chunks: Any, source_chunks: Any
) -> None:
    transform = make_transform()
    given = {"like": GRID, "grid": MOVING_GRID, "order": order, "fill_value": 3}
    expected = warp_array(image, transform, **given)
    source = da.from_array(image, chunks=source_chunks)
    lazy = warp(source, transform, chunks=chunks, **given)
    assert lazy.shape == GRID.shape
    assert lazy.dtype == image.dtype
    np.testing.assert_array_equal(lazy.compute(), expected)


def test_arrays_in_memory_and_their_like_are_taken(image: NDArray[np.uint16]) -> None:
    transform = make_transform()
    expected = warp_array(image, transform, like=GRID, grid=MOVING_GRID)
    lazy = warp(image, transform, like=GRID, grid=MOVING_GRID, chunks=9)
    np.testing.assert_array_equal(lazy.compute(), expected)
    flat = warp([[1, 2], [3, 4]], Transform.identity(2), like=Grid(shape=(2, 2)))
    np.testing.assert_array_equal(flat, [[1, 2], [3, 4]])


def test_one_task_an_output_chunk_and_the_plan_once(image: NDArray[np.uint16]) -> None:
    source = da.from_array(image, chunks=10)
    lazy = warp(source, make_transform(), like=GRID, grid=MOVING_GRID, chunks=9)
    own = {k for k in lazy.__dask_graph__() if k not in source.__dask_graph__()}
    assert len(own) == lazy.npartitions + 1


def test_keys_are_the_same_for_the_same_work(image: NDArray[np.uint16]) -> None:
    def name(transform: Transform, **change: Any) -> str:
        return warp(image, transform, **({"like": GRID, "grid": MOVING_GRID} | change)).name

    transform = make_transform()
    first = name(transform)
    assert name(make_transform()) == first
    assert name(pickle.loads(pickle.dumps(transform))) == first
    others = [
        name(make_transform(1.6)),
        name(transform, order=3),
        name(transform, fill_value=1),
        name(transform, chunks=5),
        name(transform, like=GRID.coarsen(2)),
        name(transform, grid=None),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_only_what_is_needed_is_computed() -> None:
    taken: list[tuple[int, ...]] = []

    def block(block_info: Any = None) -> NDArray[np.float64]:
        place = block_info[None]
        taken.append(place["chunk-location"])
        return np.ones(place["chunk-shape"])

    grid = Grid(shape=(40, 40))
    source = da.map_blocks(block, chunks=((10,) * 4, (10,) * 4), dtype=float)
    shift = Transform(Affine(np.eye(2), [0.5, 100.0]))
    with dask.config.set(scheduler="synchronous"):
        assert not warp(source, shift, like=grid, chunks=10).compute().any()
        assert taken == []
        near = warp(source, Transform(Affine(np.eye(2), [0.5, 0.0])), like=grid, chunks=10)
        assert near[:10, :10].compute().all()
    assert sorted(taken) == [(0, 0), (1, 0)]


def test_big_endian_and_bool(image: NDArray[np.uint16]) -> None:
    for dtype in (">u2", "?"):
        source = da.from_array((image > 30000).astype(dtype), chunks=10)
        lazy = warp(source, make_transform(), like=GRID, grid=MOVING_GRID, order=0, chunks=9)
        result = lazy.compute()
        assert result.dtype == lazy.dtype == np.dtype(dtype).newbyteorder("=")
        expected = warp_array(image > 30000, make_transform(), like=GRID, grid=MOVING_GRID, order=0)
        np.testing.assert_array_equal(result, expected)


def test_threads_equal_processes(image: NDArray[np.uint16], client: Client) -> None:
    source = da.from_array(image, chunks=10)
    lazy = warp(source, make_transform(), like=GRID, grid=MOVING_GRID, chunks=9)
    on_workers = client.compute(lazy).result()
    np.testing.assert_array_equal(on_workers, lazy.compute(scheduler="threads"))


def test_input_is_checked() -> None:
    grid = Grid(shape=(4, 4))
    with pytest.raises(InputError, match=r"shape \(3, 3\), its grid has \(4, 4\)"):
        warp(np.zeros((3, 3)), Transform.identity(2), like=grid, grid=grid)
    with pytest.raises(InputError, match="Invalid order 2"):
        warp(np.zeros((4, 4)), Transform.identity(2), like=grid, order=2)
    values = da.from_array(np.arange(16.0).reshape(4, 4), chunks=2)
    unknown = values[values[:, 0] > 3]
    with pytest.raises(InputError, match="chunks of unknown size"):
        warp(unknown, Transform.identity(2), like=grid)


@dataclass(frozen=True)
class FileImage:
    """Volumes as numpy files, one a channel and time; counts what is read of this process."""

    folder: Path
    reads: list[Window] = field(default_factory=list)

    def reader(self, level: int = 0, channel: Any = None, time: int = 0) -> FileReader:
        """Return the volume of one channel and time."""
        return FileReader(self.folder / f"moving_{channel}_{time}.npy", self.reads)


@dataclass(frozen=True)
class FileReader:
    """Reads windows of a numpy file."""

    path: Path
    reads: list[Window]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""
        return self._open().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""
        return self._open().dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Read the voxels of a window."""
        self.reads.append(window)
        return np.array(self._open()[window.slices])

    def _open(self) -> NDArray[Any]:
        return np.load(self.path, mmap_mode="r")


@dataclass(frozen=True)
class FileWriter:
    """Writes windows into numpy files."""

    folder: Path
    grid: Grid
    unit: tuple[int, ...]

    @property
    def level_grids(self) -> tuple[Grid, ...]:
        """Where the voxels are."""
        return (self.grid,)

    def unit_shape(self, level: int = 0) -> tuple[int, ...]:
        """Return the voxels that one task writes."""
        return self.unit

    def units(self, level: int = 0) -> Iterator[ChunkWindow]:
        """Walk over the windows that one task each writes."""
        return iter_windows(self.grid.shape, self.unit)

    def path(self, channel: int, time: int) -> Path:
        """Return the file of a channel and time."""
        return self.folder / f"out_{channel}_{time}.npy"

    def write(
        self, window: Window, block: NDArray[Any], *, level: int, channel: int, time: int
    ) -> None:
        """Write the voxels of a window."""
        array = np.load(self.path(channel, time), mmap_mode="r+")
        array[window.slices] = block
        array.flush()

    def downsample(self, level: int, window: Window, channel: int, time: int) -> None:
        """There is one level."""
        raise NotImplementedError


class Remembered:
    """Numbers of units that are done."""

    def __init__(self, numbers: set[int]) -> None:
        self.numbers = numbers
        self.num_flushes = 0

    def read(self) -> set[int]:
        """Return them."""
        return set(self.numbers)

    def add(self, number: int) -> None:
        """Note one more."""
        self.numbers.add(number)

    def flush(self) -> None:
        """Count the calls."""
        self.num_flushes += 1


@pytest.fixture
def stores(tmp_path: Path) -> tuple[FileImage, FileWriter]:
    """Return two channels and two times of a moving image, and where to write."""
    rng = np.random.default_rng(2)
    writer = FileWriter(tmp_path, GRID, (6, 13, 12))
    for time in range(2):
        for channel in range(2):
            noise = rng.integers(0, 60000, MOVING_GRID.shape, dtype=np.uint16)
            np.save(tmp_path / f"moving_{channel}_{time}.npy", noise)
            np.save(writer.path(channel, time), np.full(GRID.shape, 77, dtype=np.uint16))
    return FileImage(tmp_path), writer


def make_plan(transform: Transform, **change: Any) -> WarpPlan:
    """Return a plan over the grids of this file."""
    given = {"grid": GRID, "moving_grid": MOVING_GRID, "dtype": np.dtype(np.uint16)}
    return WarpPlan(transform=transform, **(given | change))


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_volumes_equal_arrays(
    stores: tuple[FileImage, FileWriter], where: str, request: pytest.FixtureRequest
) -> None:
    image, writer = stores
    client = request.getfixturevalue("client") if where == "processes" else None
    transform = make_transform()
    counts = warp_volume(
        image,
        writer,
        make_plan(transform),
        channels=[1, 0],
        times=[0, 1],
        client=client,
        progress=Silent(),
    )
    assert sum(counts.values()) == 4 * len(list(writer.units()))
    for time in range(2):
        for channel, source in enumerate([1, 0]):
            moving = np.load(image.folder / f"moving_{source}_{time}.npy")
            expected = warp_array(moving, transform, like=GRID, grid=MOVING_GRID)
            np.testing.assert_array_equal(np.load(writer.path(channel, time)), expected)


def test_what_lies_outside_is_written_and_not_read(
    stores: tuple[FileImage, FileWriter],
) -> None:
    image, writer = stores
    far = make_plan(Transform(Affine(np.eye(3), [0.0, 1000.0, 0.0])), fill_value=9)
    counts = warp_volume(image, writer, far, channels=[0], times=[0], progress=Silent())
    assert counts == {"ok": 0, "empty": len(list(writer.units()))}
    assert image.reads == []
    assert (np.load(writer.path(0, 0)) == 9).all()


def test_finished_units_are_left_alone(stores: tuple[FileImage, FileWriter]) -> None:
    image, writer = stores
    num_units = len(list(writer.units()))
    finished = Remembered(set(range(num_units - 1)))
    counts = warp_volume(
        image,
        writer,
        make_plan(make_transform()),
        channels=[0],
        times=[0],
        progress=Silent(),
        finished=finished,
    )
    assert sum(counts.values()) == 1
    assert finished.numbers == set(range(num_units))
    last = list(writer.units())[-1].window
    result = np.load(writer.path(0, 0))
    assert (result[last.slices] != 77).any()
    result[last.slices] = 77
    assert (result == 77).all()


def test_damaged_image_stops_the_warp_and_keeps_the_notes(
    stores: tuple[FileImage, FileWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, writer = stores

    def read(self: FileReader, window: Window) -> NDArray[Any]:
        raise ImageError("Chunk c/0/0/0 is damaged.")

    monkeypatch.setattr(FileReader, "read", read)
    finished = Remembered(set())
    with pytest.raises(ImageError, match="c/0/0/0 is damaged"):
        warp_volume(
            image,
            writer,
            make_plan(make_transform()),
            channels=[0],
            times=[0],
            progress=Silent(),
            finished=finished,
        )
    assert finished.num_flushes == 1


@pytest.mark.parametrize("order", ORDERS)
def test_parts_give_the_same_block_within_the_limit(order: int) -> None:
    rng = np.random.default_rng(3)
    grid = Grid(shape=(128, 120, 110))
    image = rng.normal(size=grid.shape).astype(np.float32)
    plan = make_plan(make_transform(), grid=grid, moving_grid=grid, dtype=image.dtype, order=order)
    window = Window((2, 3, 4), (110, 109, 108))
    reader = CopyReader(image)
    whole = warp_window(plan, reader, window)
    needed = task_bytes(plan, window)
    limit = window.size * 4 + needed // 3
    parts = cut_to_fit(plan, window, limit)
    assert len(parts) > 2
    assert sum(p.size for p in parts) == window.size
    tracemalloc.start()
    try:
        result = warp_window(plan, reader, window, limit=limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(result, whole)
    assert peak <= limit


class CopyReader(ArrayReader):
    """Reads as a file does: into new memory."""

    def read(self, window: Window) -> NDArray[Any]:
        """Read the voxels of a window."""
        return self.array[window.slices].copy()


@pytest.mark.parametrize("order", ORDERS)
def test_memory_does_not_depend_on_the_volume(order: int) -> None:
    window = Window((0, 0, 0), (64, 64, 64))
    sizes = set()
    for side in (256, 2560, 25600):
        grid = Grid(shape=(side,) * 3)
        middle = window.shift((side // 2,) * 3)
        plan = make_plan(Transform.identity(3), grid=grid, moving_grid=grid, order=order)
        sizes.add(task_bytes(plan, middle))
    assert len(sizes) == 1


def test_plans_within_the_limit_pass() -> None:
    grid = Grid(shape=(256, 256, 256))
    plan = make_plan(make_transform(), grid=grid, moving_grid=grid)
    units = list(iter_windows(grid.shape, (64, 64, 100)))
    largest = max(task_bytes(plan, unit.window) for unit in units)
    bound = check_memory(plan, units, 2 * largest)
    assert largest <= bound <= 2 * largest
    # Units that do not fit at once, but do in parts, are no reason to refuse.
    assert check_memory(plan, units, int(0.7 * largest)) <= int(0.7 * largest)


def test_plans_beyond_the_limit_are_refused() -> None:
    grid = Grid(shape=(512, 512, 512))
    coefficients = np.zeros((10, 10, 10, 3))
    # Rough within one cell: no part is small enough to read little.
    coefficients[4:6, 4:6, 4:6] = np.array([212.0, -212.0])[None, None, :, None]
    field = DisplacementField(coefficients, [-64.0] * 3, [64.0] * 3)
    plan = make_plan(Transform(Affine.identity(3), field), grid=grid, moving_grid=grid)
    units = iter_windows(grid.shape, (128, 128, 128))
    with pytest.raises(
        ResourceError,
        match=r"One warp task needs [\d.]+ MB, more than the 6 MB of a worker, and does not fit in "
        r"parts either. The largest \|u\| in output chunk \(1, 1, 1\) is 212 um. Use smaller "
        r"chunks or give workers more memory.",
    ):
        check_memory(plan, units, 6_000_000)


def test_affine_alone_can_be_refused() -> None:
    grid = Grid(shape=(64, 64, 64))
    moving_grid = Grid(shape=(6400, 6400, 6400), spacing=(0.01, 0.01, 0.01))
    plan = make_plan(Transform.identity(3), grid=grid, moving_grid=moving_grid)
    with pytest.raises(ResourceError, match=r"Output chunk \(0, 0, 0\) reads \(6301, 6301, 6301\)"):
        check_memory(plan, iter_windows(grid.shape, (64, 64, 64)), 2_000_000)
