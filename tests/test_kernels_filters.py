"""The compiled filters, peaks and fits against plain numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tilereg.kernels.blobs import MAX_NEIGHBOURS, fit_blobs
from tilereg.kernels.filters import gaussian_taps, laplacian, matched_gain, noise_gain, smooth
from tilereg.kernels.peaks import find_peaks, quadratic_offsets

SHAPE = (7, 11, 13)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def smoothed(block: NDArray[np.float32], sigma: tuple[float, ...]) -> NDArray[np.float32]:
    taps = [gaussian_taps(s) for s in sigma]
    out = np.empty_like(block)
    planes = np.empty((2, *block.shape[1:]), dtype=np.float32)
    padded = np.empty(block.shape[2] + 2 * len(taps[2]), dtype=np.float32)
    smooth(block, *taps, planes, padded, out)
    return out


def bent(block: NDArray[np.float32], coefficients: tuple[float, ...]) -> NDArray[np.float32]:
    out = np.empty_like(block)
    laplacian(block, np.array(coefficients, dtype=np.float32), out)
    return out


@pytest.mark.parametrize("sigma", [(1.0, 1.5, 2.0), (0.5, 3.0, 0.7), (0.0, 1.2, 1.2)])
def test_smooth_is_scipys_gaussian(sigma: tuple[float, ...]) -> None:
    block = noise()
    radius = [len(gaussian_taps(s)) - 1 for s in sigma]
    expected = block.astype(np.float64)
    for axis, (s, r) in enumerate(zip(sigma, radius, strict=True)):
        if s > 0:
            expected = ndimage.gaussian_filter1d(expected, s, axis=axis, mode="reflect", radius=r)
    np.testing.assert_allclose(smoothed(block, sigma), expected, atol=2e-6)


def test_smooth_of_one_plane_and_one_voxel() -> None:
    plane = noise((1, 6, 9))
    expected = ndimage.gaussian_filter(plane[0].astype(np.float64), 1.5, mode="reflect", radius=6)
    np.testing.assert_allclose(smoothed(plane, (0, 1.5, 1.5))[0], expected, atol=2e-6)
    np.testing.assert_allclose(smoothed(noise((1, 1, 1)), (1, 1, 1)), noise((1, 1, 1)), rtol=1e-6)


def test_laplacian_is_scipys_correlation() -> None:
    block, weights = noise(), (0.5, 2.0, 3.0)
    expected = sum(
        w * ndimage.correlate1d(block.astype(np.float64), [-1, 2, -1], axis=a, mode="nearest")
        for a, w in enumerate(weights)
    )
    np.testing.assert_allclose(bent(block, weights), expected, atol=1e-5)


def test_gains_are_those_of_the_filter() -> None:
    sigma, weights = np.array([1.0, 1.5, 2.0]), np.array([1.0, 2.25, 4.0])
    impulse = np.zeros((25, 33, 41), dtype=np.float32)
    impulse[12, 16, 20] = 1
    kernel = bent(smoothed(impulse, tuple(sigma)), tuple(weights)).astype(np.float64)
    assert noise_gain(sigma, weights) == pytest.approx(np.sqrt((kernel**2).sum()), rel=1e-5)
    places = [np.arange(n) - n // 2 for n in impulse.shape]
    z, y, x = np.meshgrid(*places, indexing="ij")
    blob = np.exp(-0.5 * ((z / 1.0) ** 2 + (y / 1.5) ** 2 + (x / 2.0) ** 2))
    assert matched_gain(sigma, weights) == pytest.approx((kernel * blob).sum(), rel=1e-4)


def test_slopes_and_constants_vanish() -> None:
    z, y, x = np.mgrid[:20, :20, :20]
    slope = (3 * z - 2 * y + 5 * x + 100).astype(np.float32)
    response = bent(smoothed(slope, (1.5, 1.5, 1.5)), (1, 1, 1))
    assert np.abs(response[8:12, 8:12, 8:12]).max() < 1e-3


def plain_peaks(score: NDArray[np.float32], level: float) -> list[tuple[int, ...]]:
    """Return the peaks by the definition: greatest by (value, earlier in C order)."""
    found = []
    for place in np.ndindex(score.shape):
        box = tuple(slice(max(p - 1, 0), p + 2) for p in place)
        around = score[box]
        best = np.unravel_index(np.argmax(around), around.shape)
        here = tuple(int(b) + s.start for b, s in zip(best, box, strict=True))
        if here == place and score[place] > level:
            found.append(place)
    return found


@pytest.mark.parametrize("levels", [0, 3])
def test_find_peaks_is_the_definition(levels: int) -> None:
    score = noise()
    if levels:  # plateaus
        score = np.round(score * levels).astype(np.float32)
    expected = plain_peaks(score, 0.2)
    out = np.empty((len(expected) + 5, 3), dtype=np.int64)
    whole = np.zeros(3, dtype=np.int64), np.array(SHAPE, dtype=np.int64)
    assert find_peaks(score, *whole, 0.2, out) == len(expected)
    assert [tuple(p) for p in out[: len(expected)].tolist()] == expected
    short = np.empty((2, 3), dtype=np.int64)
    assert find_peaks(score, *whole, 0.2, short) == len(expected)
    assert short.tolist() == [list(p) for p in expected[:2]]


def test_quadratic_offsets_find_the_vertex() -> None:
    z, y, x = np.mgrid[:9, :9, :9]
    score = (50 - (z - 4.2) ** 2 - 2 * (y - 3.7) ** 2 - (x - 5.0) ** 2).astype(np.float32)
    out = np.empty((2, 3))
    quadratic_offsets(score, np.array([[4, 4, 5], [0, 8, 5]]), out)
    np.testing.assert_allclose(out[0], [0.2, -0.3, 0], atol=1e-5)
    np.testing.assert_array_equal(out[1, :2], [0, 0])


def fit(data: NDArray[np.float32], peaks: list[list[int]], sigma: float, near: int = -1):  # type: ignore[no-untyped-def]
    """Fit the first of the peaks."""
    count = len(peaks)
    neighbours = np.full((1, MAX_NEIGHBOURS), -1, dtype=np.int64)
    neighbours[0, 0] = near
    out, fitted = np.empty((1, 8)), np.empty(1, dtype=bool)
    fit_blobs(
        data,
        np.array(peaks, dtype=np.int64),
        np.zeros((count, 3)),
        np.full(count, 50.0),
        np.full((count, 3), sigma),
        np.full((count, 3), int(np.ceil(3 * sigma)), dtype=np.int64),
        neighbours,
        out,
        fitted,
    )
    return out[0], bool(fitted[0])


def blob(centre: tuple[float, ...], sigma: float, height: float) -> NDArray[np.float64]:
    z, y, x = np.mgrid[:21, :21, :21]
    square = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
    return np.asarray(height * np.exp(-0.5 * square / sigma**2))


def test_fit_of_an_exact_blob_on_a_slope() -> None:
    z, y, x = np.mgrid[:21, :21, :21]
    data = blob((10.3, 9.6, 10.1), 1.8, 40.0) + 7 + 0.5 * z - y + 0.25 * x
    out, fitted = fit(data.astype(np.float32), [[10, 10, 10]], 1.5)
    assert fitted
    np.testing.assert_allclose(out[:3], [0.3, -0.4, 0.1], atol=2e-4)
    np.testing.assert_allclose(out[3:5], [40.0, 1.2], rtol=1e-3)


def test_fit_with_a_neighbour() -> None:
    data = (blob((10, 10, 8), 1.5, 40.0) + blob((10, 10, 13), 1.5, 60.0)).astype(np.float32)
    alone, _ = fit(data, [[10, 10, 8]], 1.5)
    together, fitted = fit(data, [[10, 10, 8], [10, 10, 13]], 1.5, near=1)
    assert fitted
    np.testing.assert_allclose(together[:5], [0, 0, 0, 40, 1], atol=2e-3)
    assert abs(alone[3] - 40) > 10 * abs(together[3] - 40)


def test_fit_that_leaves_keeps_its_start() -> None:
    data = blob((10, 10, 15), 1.5, 40.0).astype(np.float32)
    out, fitted = fit(data, [[10, 10, 10]], 1.5)
    assert not fitted
    np.testing.assert_array_equal(out[:3], 0)
    assert np.isfinite(out).all()


def test_fit_of_nothing_is_finite() -> None:
    out, _ = fit(np.zeros((21, 21, 21), dtype=np.float32), [[10, 10, 10]], 1.5)
    assert np.isfinite(out).all()
