"""Scores of volumes block by block are those of the arrays."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg import metrics
from tilereg.components import block_components, joined_centroids
from tilereg.demo import write_round
from tilereg.errors import InputError
from tilereg.io.ome_zarr import open_image
from tilereg.progress import Silent
from tilereg.synthetic import BenchmarkVariant, benchmark_pair
from tilereg.windows import Window, iter_windows

SHAPE = (20, 60, 70)
BLOCKS = [None, (7, 60, 33), (1, 64, 70), (20, 3, 17), ((1, 19), (58, 2), (35, 35))]


def images(shape: tuple[int, ...], dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return two images of blobs on noise; the second shares some with the first."""
    rng = np.random.default_rng(len(shape))
    points = np.zeros((3, *shape))
    for which in points:
        which[tuple(rng.integers(0, shape, size=(25, len(shape))).T)] = 1
    blobs = ndimage.gaussian_filter(points, (0, *(1.5,) * len(shape)), mode="constant")
    blobs *= 120 / blobs.max()
    noise = rng.normal(20, 4, size=(2, *shape))
    pair = np.clip(blobs[:2] + blobs[2] + noise, 0, 250)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        return tuple(np.rint(pair).astype(kind))
    return tuple((pair * 3.7 - 200).astype(kind))


def plain_scores(
    reference: NDArray[Any], image: NDArray[Any], before: NDArray[Any] | None = None
) -> metrics.ImageScores:
    """Compare two images by one function after the other."""
    return metrics.ImageScores(
        ncc=metrics.ncc(reference, image),
        ssim=metrics.ssim(reference, image),
        iou_99=metrics.iou_bright(reference, image, 99),
        iou_995=metrics.iou_bright(reference, image, 99.5),
        mad_bright=metrics.mad_bright(reference, image, before),
        match_rate=metrics.match_rate(reference, image),
    )


def check(volume: metrics.ImageScores, plain: metrics.ImageScores) -> None:
    """Compare the scores of volumes with those of arrays."""
    assert astuple(volume) == pytest.approx(astuple(plain), rel=1e-9)
    assert volume.iou_99 == plain.iou_99
    assert volume.iou_995 == plain.iou_995
    assert volume.match_rate == plain.match_rate


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_blocks_give_the_scores_of_the_whole(dtype: str, block: Any) -> None:
    reference, image = images(SHAPE, dtype)
    before = np.roll(image, 5, axis=2)
    plain = plain_scores(reference, image, before)
    assert 0 < plain.match_rate < 1
    assert 0 < plain.iou_995 < plain.ncc < 1
    check(metrics.score_volumes(reference, image, before, block=block), plain)
    check(metrics.score_images(reference, image, before), plain)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float64"])
@pytest.mark.parametrize("shape", [(90, 110), (1, 90, 100), (4, 50, 60), (60, 70, 3)])
def test_other_types_and_shapes(shape: tuple[int, ...], dtype: str) -> None:
    reference, image = images(shape, dtype)
    block = (13, 29, 17)[-len(shape) :]
    check(
        metrics.score_volumes(reference, image, block=block),
        plain_scores(reference, image),
    )


def test_types_may_differ() -> None:
    reference, image = images(SHAPE, "uint8")[0], images(SHAPE, "float32")[1]
    check(
        metrics.score_volumes(reference, image, block=(9, 40, 40)),
        plain_scores(reference, image),
    )


def test_readers_and_stores(tmp_path: Path) -> None:
    variant = BenchmarkVariant(displacement=0.05, own_noise=True)
    pair = benchmark_pair("tiny", seed=3, variant=variant)
    write_round(tmp_path / "moving.ome.zarr", pair.moving_volume, Silent())
    image = open_image(tmp_path / "moving.ome.zarr").reader()
    assert (image.read(image.grid.window) == pair.moving).all()
    stored = np.lib.format.open_memmap(
        tmp_path / "moving.npy", mode="w+", dtype=np.uint8, shape=pair.grid.shape
    )
    stored[...] = pair.moving
    plain = plain_scores(pair.reference, pair.moving)
    assert plain.ncc > 0.3
    for moving in (pair.moving_volume, stored, image):
        check(metrics.score_volumes(pair.reference_volume, moving, block=(8, 50, 64)), plain)


def test_without_change_everything_is_alike() -> None:
    reference, _ = images(SHAPE, "uint8")
    scores = metrics.score_volumes(reference, reference, block=(6, 20, 20))
    assert astuple(scores) == pytest.approx((1, 1, 1, 1, 0, 1))


def test_what_cannot_be_scored_is_refused() -> None:
    reference, image = images(SHAPE, "float32")
    with pytest.raises(InputError, match="differ"):
        metrics.score_volumes(reference, image[:-1])
    with pytest.raises(InputError, match="not constant"):
        metrics.score_volumes(np.ones(SHAPE), image)
    with pytest.raises(InputError, match=r"\(2, 60, 70\)"):
        metrics.score_volumes(reference[:2], image[:2])
    with pytest.raises(InputError, match="Two or three axes"):
        metrics.score_volumes(reference[None], image[None])
    with pytest.raises(InputError, match="type complex"):
        metrics.score_volumes(reference, image.astype(complex))
    image[5, 6, 7] = np.nan
    with pytest.raises(InputError, match=r"Voxels in \(0, 0, 0\)..\(10, 60, 70\) are not finite"):
        metrics.score_volumes(reference, image, block=(10, 60, 70))


def joined(mask: NDArray[np.bool_], chunks: Sequence[Any]) -> NDArray[np.float64]:
    parts = [
        block_components(mask[unit.window.slices], unit.window, mask.shape)
        for unit in iter_windows(mask.shape, chunks)
    ]
    return joined_centroids(parts, mask.shape)


@pytest.mark.parametrize("chunks", [(4, 5, 6), (1, 1, 1), (12, 1, 14), ((11, 1), (13,), (3, 11))])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.5, 1.0])
def test_components_join_across_blocks(share: float, chunks: tuple[Any, ...]) -> None:
    # Near a share of 0.31 voxels percolate: components wind through many blocks.
    mask = np.random.default_rng(1).uniform(size=(12, 13, 14)) < share
    labels, count = ndimage.label(mask)
    whole = ndimage.center_of_mass(mask, labels, np.arange(1, count + 1))
    np.testing.assert_array_equal(joined(mask, chunks), np.reshape(whole, (count, 3)))


def test_components_in_a_plane() -> None:
    mask = np.random.default_rng(2).uniform(size=(40, 50)) < 0.55
    labels, count = ndimage.label(mask)
    whole = ndimage.center_of_mass(mask, labels, np.arange(1, count + 1))
    np.testing.assert_array_equal(joined(mask, (7, 50)), whole)
    assert joined_centroids([], (3, 4)).shape == (0, 2)


@dataclass(frozen=True)
class Planes:
    """A deep volume of sparse spots that is made where it is read."""

    shape: tuple[int, ...]
    dtype = np.dtype(np.uint8)

    def read(self, window: Window) -> NDArray[Any]:
        """Return voxels that depend on their index alone."""
        z, y, x = np.ogrid[window.slices]
        spots = ((z % 20 < 3) & (y % 30 < 3) & (x % 30 < 3)) * 100
        return np.asarray(spots + (z * 7 + y * 5 + x * 3) % 11, dtype=np.uint8)


def peak(depth: int) -> int:
    """Return the most memory that scoring volumes of this depth takes, in bytes."""
    volume = Planes((depth, 64, 64))
    tracemalloc.start()
    metrics.score_volumes(volume, volume, block=(16, 64, 64))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_is_that_of_a_block() -> None:
    peak(32)
    # Eight times the voxels: what grows is the few components alone.
    assert peak(512) < 1.1 * peak(64)
