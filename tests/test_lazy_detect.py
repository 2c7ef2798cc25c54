"""Detection by chunks: every path and every chunking finds the same spots to the last bit."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.typing import NDArray

from tilereg.errors import ImageError
from tilereg.grid import Grid
from tilereg.lazy.detect import DaskReader, detect_spots, detect_volume
from tilereg.points import Spots
from tilereg.spots import ArrayReader, Detector, detect_array, plan_detector
from tilereg.windows import ChunkWindow, Window, iter_windows

SHAPE = (40, 61, 58)
GRID = Grid(shape=SHAPE, spacing=(0.4, 0.2, 0.3), origin=(3.0, -4.0, 5.0))
SIGMA = (0.5, 0.25, 0.4)
CHUNKINGS = [
    SHAPE,
    (16, 16, 16),
    (1, 61, 58),
    (40, 1, 58),
    (40, 61, 1),
    ((3, 37), (10, 20, 31), (57, 1)),
    (9, 10, 11),
]


def crowd(shape: tuple[int, ...], count: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return blobs at random places, some touching, some cut by the faces, with noise."""
    rng = np.random.default_rng(seed)
    image = rng.normal(100, 10, shape)
    index = np.indices(shape)
    for place in rng.uniform(0, 1, (count, len(shape))) * shape:
        distance = ((index - place.reshape(-1, *[1] * len(shape))) ** 2).sum(axis=0)
        image += rng.uniform(50, 200) * np.exp(-0.5 * distance / 1.4**2)
    return image.clip(0, 65535).astype(np.uint16)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint16]:
    return crowd(SHAPE, 120)


@pytest.fixture(scope="module")
def detector(image: NDArray[np.uint16]) -> Detector:
    return plan_detector(ArrayReader(image), GRID, sigma=SIGMA)


@pytest.fixture(scope="module")
def whole(image: NDArray[np.uint16], detector: Detector) -> Spots:
    spots = detect_array(image, GRID, detector=detector)
    assert len(spots) > 60
    return spots


def assert_identical(first: Spots, second: Spots) -> None:
    assert len(first) == len(second)
    for name in ("positions", "sigma", "intensity", "response", "localisation"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_chunks_do_not_matter(image, detector, whole, chunks) -> None:  # type: ignore[no-untyped-def]
    assert_identical(detect_volume(ArrayReader(image), GRID, detector, chunks), whole)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_dask_is_the_reader_path(image, detector, whole, chunks) -> None:  # type: ignore[no-untyped-def]
    lazy = da.from_array(image, chunks=chunks)
    found = detect_spots(lazy, GRID, sigma=SIGMA)
    assert_identical(found, whole)
    by_reader = detect_volume(ArrayReader(image), GRID, detector, lazy.chunks)
    np.testing.assert_array_equal(found.chunk, by_reader.chunk)


@pytest.mark.parametrize("chunks", CHUNKINGS)
def test_max_spots_is_the_same_on_every_path(image, whole, chunks) -> None:  # type: ignore[no-untyped-def]
    detector = plan_detector(ArrayReader(image), GRID, sigma=SIGMA, max_spots=25)
    strongest = np.sort(whole.response)[-25:]
    on_disk = detect_volume(ArrayReader(image), GRID, detector, chunks)
    assert len(on_disk) == 25
    np.testing.assert_allclose(np.sort(on_disk.response), strongest, rtol=1e-6)
    assert_identical(on_disk, detect_array(image, GRID, detector=detector))
    lazy = da.from_array(image, chunks=chunks)
    assert_identical(detect_spots(lazy, GRID, sigma=SIGMA, max_spots=25), on_disk)


def test_array_path_is_the_same(image: NDArray[np.uint16], whole: Spots) -> None:
    assert_identical(detect_spots(image, GRID, sigma=SIGMA), whole)


def test_plan_of_a_dask_array_is_the_same(image: NDArray[np.uint16], detector: Detector) -> None:
    assert plan_detector(DaskReader(da.from_array(image)), GRID, sigma=SIGMA) == detector


@pytest.mark.parametrize(("chunks", "scales"), [((30, 41), (1.0,)), ((1, 150), (1.0, 2.0))])
def test_2d_and_several_sizes(chunks: tuple[int, ...], scales: tuple[float, ...]) -> None:
    flat = crowd((130, 150), 60)
    grid = Grid(shape=flat.shape, spacing=(0.1, 0.1))
    detector = plan_detector(ArrayReader(flat), grid, sigma=0.14, scales=scales)
    expected = detect_array(flat, grid, detector=detector)
    assert len(expected) > 30
    assert_identical(detect_volume(ArrayReader(flat), grid, detector, chunks), expected)
    lazy = da.from_array(flat, chunks=chunks)
    assert_identical(detect_spots(lazy, grid, sigma=0.14, scales=scales), expected)


def test_single_plane(image: NDArray[np.uint16]) -> None:
    plane = image[20:21]
    grid = Grid(shape=plane.shape, spacing=GRID.spacing)
    expected = detect_spots(plane, grid, sigma=0.3)
    assert len(expected) > 5
    lazy = da.from_array(plane, chunks=(1, 20, 30))
    assert_identical(detect_spots(lazy, grid, sigma=0.3), expected)


def test_plateaus_do_not_depend_on_chunks() -> None:
    flat = np.zeros((60, 60), dtype=np.uint8)
    flat[10:20, 15:40] = 255
    flat[33:36, 33:50] = 255
    grid = Grid(shape=flat.shape)
    detector = Detector(sigmas=((1.0, 1.0),), thresholds=(5.0,), noise=(1.0,))
    expected = detect_array(flat, grid, detector=detector)
    assert len(expected) > 3
    for chunks in ((7, 60), (60, 1), ((12, 48), (16, 44))):
        found = detect_volume(ArrayReader(flat), grid, detector, chunks)
        assert_identical(found, expected)


def test_threads_and_processes_agree(
    image: NDArray[np.uint16], detector: Detector, whole: Spots, client: Client
) -> None:
    chunks = ((13, 27), 30, 25)
    reader = ArrayReader(image)
    threads = detect_volume(reader, GRID, detector, chunks, num_workers=2)
    processes = detect_volume(reader, GRID, detector, chunks, client=client)
    assert_identical(threads, whole)
    assert_identical(processes, whole)
    np.testing.assert_array_equal(threads.chunk, processes.chunk)


def test_chunk_is_the_owner(image: NDArray[np.uint16], detector: Detector) -> None:
    chunks = (13, 20, 58)
    seen: dict[int, int] = {}

    def progress(chunk: ChunkWindow, spots: Spots) -> None:
        seen[chunk.number] = len(spots)

    found = detect_volume(ArrayReader(image), GRID, detector, chunks, progress=progress)
    windows = {c.number: c.window for c in iter_windows(SHAPE, chunks)}
    assert sorted(seen) == sorted(windows)
    for number, count in seen.items():
        index = GRID.to_index(found.positions[found.chunk == number])
        assert len(index) == count
        # The fit may move a centre beside its peak voxel, never far.
        assert windows[number].pad(2).contains(index).all()


def test_image_without_spots() -> None:
    zeros = da.zeros((30, 40, 50), chunks=(10, 40, 25), dtype="uint16")
    spots = detect_spots(zeros, Grid(shape=zeros.shape))
    assert len(spots) == 0
    assert spots.ndim == 3


def test_bad_voxel_is_named_by_its_place_in_the_volume(detector: Detector) -> None:
    spoilt = np.full(SHAPE, 100.0)
    spoilt[31, 44, 7] = np.nan
    with pytest.raises(ImageError, match=r"Voxel \(31, 44, 7\) of the image is nan"):
        detect_volume(ArrayReader(spoilt), GRID, detector, (20, 30, 30), num_workers=1)
    with pytest.raises(ImageError, match=r"Voxel \(31, 44, 7\)"):
        detect_spots(da.from_array(spoilt, chunks=(20, 30, 30)), GRID, sigma=SIGMA)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.6, 2.5)])
def test_memory_promise_holds(dtype: str, scales: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).normal(100, 10, (96, 96, 96)).astype(dtype)
    grid = Grid(shape=(500, 500, 500))
    detector = Detector(
        sigmas=tuple((f,) * 3 for f in scales),
        thresholds=(20.0,) * len(scales),
        noise=(3.0,) * len(scales),
        offset=100.0,
    )
    halo = detector.halo(grid)
    window = Window((100,) * 3, (196,) * 3)
    core = window.pad([-h for h in halo])
    detector.detect(image, window, core, grid)  # compiles
    tracemalloc.start()
    try:
        detector.detect(image, window, core, grid)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    promised = detector.bytes_needed(core.shape, grid, dtype)
    assert 0.5 * promised < peak + image.nbytes <= promised
