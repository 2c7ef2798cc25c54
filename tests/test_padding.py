"""Padding: found where it is, harmless where it is not, and no source of spots."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg.detector import is_round
from tilereg.grid import Grid
from tilereg.lazy.detect import detect_volume
from tilereg.padding import Padding, find_padding, padded
from tilereg.rendering import render_spots
from tilereg.spots import ArrayReader, detect_array, plan_detector
from tilereg.windows import Window

SHAPE = (24, 96, 96)


def scene(level: float = 40.0, noise: float = 5.0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Spots on a background, and where they are."""
    rng = np.random.default_rng(0)
    spots = rng.uniform(6, np.array(SHAPE) - 6, size=(25, 3))
    image = render_spots(spots, np.full(len(spots), 120.0), 1.5, Window.whole(SHAPE))
    image += rng.normal(level, noise, SHAPE)
    return np.clip(np.rint(image), 1, 255).astype(np.uint8), spots


def turned_corner(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with a slanted part of it, and its last plane, cut out."""
    z, y, x = np.indices(image.shape)
    out = np.where(1.3 * y + 0.7 * x + 0.4 * z < 70, 0, image)
    out[-1] = 0
    return out.astype(np.uint8)


def test_padding_is_found_with_the_level_next_to_it() -> None:
    image = turned_corner(scene()[0])
    found = find_padding([image])
    assert found is not None
    assert found.value == 0
    assert found.level == pytest.approx(40, abs=1)
    mask = padded(image, 0.0)
    assert mask is not None
    assert (mask == (image == 0)).mean() > 0.9999


@pytest.mark.parametrize("shape", [(30, 40), (1, 30, 40)])
def test_padding_of_a_plane(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(50, 70, size=(100, 100)).astype(np.uint16)
    image[:, :40] = 0
    image[50, 70] = 0  # alone: a value like any other
    mask = padded(image.reshape(1, 100, 100) if len(shape) == 3 else image, 0.0)
    assert mask is not None
    assert mask.sum() == 40 * 100
    assert find_padding([image]) == Padding(0.0, float(np.median(image[:, 41:43])))


def test_no_padding_in_what_has_none() -> None:
    image = scene()[0]
    assert find_padding([image]) is None
    clipped = np.clip(image.astype(int) - 42, 0, 255).astype(np.uint8)  # half of it is zero
    assert (clipped == 0).mean() > 0.5
    assert find_padding([clipped]) is None
    assert find_padding([np.zeros((9, 9, 9))]) is None
    assert find_padding([np.full((9, 9, 9), np.nan)]) is None
    mask = np.zeros((30, 60, 60), np.uint8)
    mask[10:20, 10:30, 10:30] = 255  # a binary image is all signal
    assert find_padding([mask]) is None


def test_spots_are_those_of_the_image_without_padding() -> None:
    image, truth = scene()
    grid = Grid(shape=SHAPE)
    cut = turned_corner(image)
    left = [p for p in truth if ndimage.map_coordinates(cut, p[:, None], order=0)[0] > 0]
    found = detect_array(cut, grid)
    distance = np.linalg.norm(found.positions[:, None] - np.array(left), axis=-1)
    assert (distance.min(axis=0) < 0.3).mean() > 0.9
    assert (distance.min(axis=1) > 1).sum() <= 2
    # A threshold far below the step: without the padding's level there would be hundreds.
    low = detect_array(cut, grid, sigma=1.5, threshold=12.0)
    assert len(low) < 2 * len(truth)


def test_spots_on_a_constant_background_are_found() -> None:
    spots = np.random.default_rng(2).uniform(8, np.array(SHAPE) - 8, size=(20, 3))
    image = render_spots(spots, np.full(20, 200.0), 1.5, Window.whole(SHAPE))
    found = detect_array(np.rint(image).astype(np.uint8), Grid(shape=SHAPE))
    distance = np.linalg.norm(found.positions[:, None] - spots, axis=-1)
    assert len(found) == len(spots)
    assert distance.min(axis=0).max() < 0.5  # some are close to each other


def test_padding_does_not_depend_on_the_chunks() -> None:
    cut, grid = turned_corner(scene()[0]), Grid(shape=SHAPE)
    detector = plan_detector(ArrayReader(cut), grid)
    assert detector.padding is not None
    whole = detect_array(cut, grid, detector=detector)
    parts = detect_volume(ArrayReader(cut), grid, detector, (7, 31, 40))
    np.testing.assert_array_equal(whole.positions, parts.positions)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 6.0])
def test_roundness_of_a_blob(ratio: float) -> None:
    z, y, x = np.indices((21, 21, 61)) - np.array([10, 10, 30]).reshape(3, 1, 1, 1)
    score = np.exp(-0.5 * (z**2 + y**2 + (x / ratio) ** 2) / 9).astype(np.float32)
    peak = np.array([[10, 10, 30]])
    assert is_round(score, peak, np.full(3, 1.5))[0] == (ratio < 3)
    # In widths that follow its shape it is round again.
    assert is_round(score, peak, np.array([1.5, 1.5, 1.5 * ratio]))[0]


def test_roundness_against_eigenvalues() -> None:
    from tilereg.kernels.peaks import roundness

    rng = np.random.default_rng(3)
    score = ndimage.gaussian_filter(rng.normal(size=(12, 12, 12)), 1.5).astype(np.float32)
    peaks = rng.integers(1, 11, size=(200, 3))
    for width in (np.array([1.2, 1.5, 2.0]), np.array([0.0, 1.5, 2.0])):
        out = np.empty(len(peaks))
        roundness(score, peaks, width, out)
        for place, value in zip(peaks, out, strict=True):
            box = score[tuple(slice(p - 1, p + 2) for p in place)].astype(np.float64)
            first = np.array(np.gradient(box))
            bend = np.empty((3, 3))
            for i in range(3):
                for j in range(3):
                    if i == j:
                        line = np.moveaxis(box, i, 0)[:, 1, 1]
                        bend[i, i] = line[0] + line[2] - 2 * line[1]
                    else:
                        bend[i, j] = np.gradient(first[i], axis=j)[1, 1, 1]
            bend *= np.outer(width, width)
            used = width > 0
            values = np.linalg.eigvalsh(bend[np.ix_(used, used)])
            expected = values[-1] / values[0] if values[0] < 0 else 0.0
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
