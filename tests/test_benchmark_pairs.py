"""Benchmark pairs: the published definitions, every variant's own, and the truth is true."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from tilereg import metrics
from tilereg.errors import InputError
from tilereg.kernels.rendering import add_noise
from tilereg.synthetic import (
    BENCHMARK_FIELDS,
    BENCHMARK_VOLUMES,
    BenchmarkPair,
    BenchmarkVariant,
    benchmark_field,
    benchmark_pair,
)
from tilereg.windows import Window, iter_windows

SMALL = ((12, 50, 60), 25)
VARIANTS = {
    "published": BenchmarkVariant(),
    "other spots": BenchmarkVariant(density=2, drop_out=0.3, spurious=0.4, jitter=0.3),
    "turned": BenchmarkVariant(rotation=35, subpixel=True, own_noise=True),
    "jumps": BenchmarkVariant(jump=4, displacement=0.3),
    "thick planes": BenchmarkVariant(z_step=2.5, amplitude_to_noise=5),
    "all": BenchmarkVariant(
        density=3, drop_out=0.2, spurious=0.2, jitter=0.2, own_noise=True, rotation=-70,
        z_step=1.5, jump=2.5, subpixel=True,
    ),
}  # fmt: skip


def small(field: str = "polynomial_small", seed: int = 1, **options: Any) -> BenchmarkPair:
    return benchmark_pair(SMALL, field, seed, variant=BenchmarkVariant(**options))


def indices(shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.moveaxis(np.indices(shape), 0, -1).reshape(-1, len(shape)).astype(float)


def plain_reference(pair: BenchmarkPair, amplitudes: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw the reference as it is defined: Gaussians, background 20, noise of 5 and 5."""
    image = np.zeros(pair.grid.shape)
    for spot, amplitude in zip(pair.spots, amplitudes, strict=True):
        squared = ((indices(image.shape) - spot) ** 2).sum(axis=1).reshape(image.shape)
        # Spots end in a box of five sigmas, where 4e-6 of their height is left.
        near = (np.abs(indices(image.shape) - spot) <= 7.5).all(axis=1).reshape(image.shape)
        image += amplitude * np.exp(-squared / (2 * 1.5**2)) * near
    noise = np.zeros(image.shape)
    add_noise(noise, np.zeros(3, np.int64), pair.reference_volume._key, 1.0)
    return np.clip(image + 20 + np.sqrt(50) * noise, 0, 255).astype(np.uint8)


def test_reference_is_as_published() -> None:
    pair = small()
    amplitudes = pair.reference_volume.amplitudes
    assert pair.spots.shape == (25, 3)
    assert (pair.spots == np.rint(pair.spots)).all()
    assert (pair.spots >= [2, 5, 5]).all()
    assert (pair.spots <= np.array(SMALL[0]) - [3, 6, 6]).all()
    plain = plain_reference(pair, amplitudes)
    assert plain.std() > 10
    assert (pair.reference == plain).all()


@pytest.mark.parametrize("name", BENCHMARK_FIELDS)
def test_moving_is_the_reference_pulled(name: str) -> None:
    pair = small(name)
    at = benchmark_field(name, SMALL[0], 1)(indices(SMALL[0]))
    last = np.array(SMALL[0]) - 1
    # The tail of a bump far away moves nothing out of the volume.
    near = np.clip(at, 0, last)
    at = np.where(np.abs(at - near) < 1e-9, near, at)
    values = ndimage.map_coordinates(pair.reference.astype(float), at.T, order=1, cval=0.0)
    plain = np.rint(values).reshape(SMALL[0])
    # Where rounding errors decide between two whole numbers, one is as good as the other.
    tied = np.abs(np.abs(values - np.floor(values)) - 0.5).reshape(SMALL[0]) < 1e-9
    assert (pair.moving == plain)[~tied].all()
    assert tied.mean() < 0.01
    np.testing.assert_allclose(pair.true_inverse(indices(SMALL[0])), at, atol=1.1e-9)


def test_amplitudes_and_places_cover_their_ranges() -> None:
    pair = benchmark_pair(((60, 80, 90), 20_000))
    assert np.unique(pair.reference_volume.amplitudes).tolist() == list(range(180, 221))
    assert pair.spots.min(axis=0).tolist() == [2, 5, 5]
    assert pair.spots.max(axis=0).tolist() == [57, 74, 84]


def test_published_start_is_reproduced() -> None:
    # The published image metrics before registration: NCC 0.029, IoU 0.030, MAD 0.248.
    pair = benchmark_pair("medium", "polynomial_small", seed=0)
    assert 0.0 < metrics.ncc(pair.reference, pair.moving) < 0.06
    assert 0.0 < metrics.iou_bright(pair.reference, pair.moving) < 0.06
    assert 0.2 < metrics.mad_bright(pair.reference, pair.moving) < 0.28


@pytest.mark.parametrize("chunks", [(5, 33, 47), (1, 50, 7), None])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_chunking_gives_the_same_voxels(name: str, chunks: tuple[int, ...] | None) -> None:
    pair = benchmark_pair(((30, 50, 60), 60), "gaussian_large", 3, variant=VARIANTS[name])
    uneven = [(n - 1, 1) for n in pair.grid.shape]
    for read, whole in (
        (pair.read_reference, pair.reference),
        (pair.read_moving, pair.moving),
    ):
        joined = np.zeros_like(whole)
        for unit in iter_windows(whole.shape, chunks or uneven):
            joined[unit.window.slices] = read(unit.window)
        assert whole.dtype == np.uint8
        assert whole.std() > 3
        assert (joined == whole).all()


@pytest.mark.parametrize("field", BENCHMARK_FIELDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_source_windows_are_true_bounds(name: str, field: str) -> None:
    pair = benchmark_pair(((30, 200, 210), 60), field, 3, variant=VARIANTS[name])
    last = np.array(pair.grid.shape) - 1
    centres = [last / 2]
    if hasattr(pair.pull.field, "centres"):
        centres.extend(np.clip(pair.pull.field.centres, 0, last))
    # A bump in the middle of a window is what corners alone would miss.
    for centre in np.array(centres).astype(int):
        around = Window(tuple(centre - 30), tuple(centre + 30)).clip(pair.grid.shape)
        at = pair.pull(indices(around.shape) + around.start)
        needed = pair.moving_volume.source_window(around)
        low, high = np.maximum(np.floor(at), 0), np.minimum(np.floor(at) + 1, last)
        inside = ((at >= 0) & (at <= last)).all(axis=1)
        assert inside.any()
        assert (low[inside] >= needed.start).all()
        assert (high[inside] < needed.stop).all()


def test_whole_of_a_large_pair_is_never_held() -> None:
    pair = benchmark_pair("thick_large", "polynomial_small")
    window = Window((64, 1024, 1280), (96, 1088, 1344))
    assert pair.grid.shape == (200, 2722, 2722)
    assert pair.moving_volume.source_window(window).size < 2 * window.size
    copy = pickle.loads(pickle.dumps(pair.moving_volume))
    assert copy.grid == pair.grid
    assert (copy.read(window) == pair.read_moving(window)).all()
    assert (pair.read_moving(window) > 100).any()


def test_windows_from_outside_are_zero() -> None:
    pair = small(displacement=2.0)
    at = pair.pull(indices(SMALL[0]))
    outside = ((at < 0) | (at > np.array(SMALL[0]) - 1)).any(axis=1).reshape(SMALL[0])
    assert 0.5 < outside.mean() < 1
    assert (pair.moving[outside] == 0).all()
    for window in (Window((0, 0, 0), (12, 50, 61)), Window((3, 3, 3), (3, 4, 4))):
        with pytest.raises(InputError, match="lie inside the volume"):
            pair.read_moving(window)


@pytest.mark.parametrize("field", BENCHMARK_FIELDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_map_is_the_inverse_of_the_pull(name: str, field: str) -> None:
    pair = benchmark_pair("small", field, 2, variant=VARIANTS[name])
    rng = np.random.default_rng(0)
    last = np.array(pair.grid.shape) - 1
    points = rng.uniform(0, last, (500, 3))
    # Every place that the moving image shows is found again, though it may be another copy.
    shown = pair.pull(points)
    again = pair.true_map(shown)
    assert np.isfinite(again).all()
    np.testing.assert_allclose(pair.pull(again), shown, atol=1e-9)
    # Where nothing folds and no seam is near, it is the same.
    folds = np.linalg.det(pair.pull.jacobian(pair.pull.grid.to_index(points))) <= 0
    seam = (np.abs(points[:, 1:] - last[1:] / 2) <= 8).any(axis=1)
    if not folds.any() and "large" not in field:
        np.testing.assert_allclose(again[~seam], points[~seam], atol=1e-8)


@pytest.mark.parametrize("name", VARIANTS)
def test_derivatives_of_the_pull(name: str) -> None:
    pair = benchmark_pair("small", "multi_point", 2, variant=VARIANTS[name])
    points = np.random.default_rng(0).uniform(0, 1, (40, 3)) * (np.array(pair.grid.shape) - 1)
    jacobian = pair.pull.jacobian(points)
    for axis, step in enumerate(np.eye(3) * 1e-5):
        slope = (pair.pull(points + step) - pair.pull(points - step)) / 2e-5
        np.testing.assert_allclose(jacobian[:, :, axis], slope, atol=1e-7)


def test_folds_have_one_of_several_answers() -> None:
    pair = benchmark_pair("medium", "polynomial_large", seed=15)
    last = np.array(pair.grid.shape) - 1
    grid = np.random.default_rng(1).uniform(0, last, (4000, 3))
    folded = np.linalg.det(pair.pull.jacobian(grid)) < 0
    assert folded.any(), "This seed folds; the test needs that."
    shown = pair.pull(grid)
    again = pair.true_map(shown)
    assert np.isfinite(again).all()
    np.testing.assert_allclose(pair.pull(again), shown, atol=1e-8)
    assert pair.visible(shown).mean() > 0.99


def test_places_without_answer_are_nan() -> None:
    pair = small()
    far = np.array([[5.0, 1e4, 10.0], [np.nan, 1.0, 1.0], [5.0, 20.0, 20.0]])
    assert np.isnan(pair.true_map(far)[1]).all()
    assert pair.visible(far).tolist()[:2] == [False, False]
    assert pair.true_map(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_points_pairs_and_map_agree(name: str) -> None:
    variant = VARIANTS[name]
    pair = benchmark_pair("medium", "polynomial_small", 4, variant=variant)
    i, j = pair.pairs.T
    assert len(i) > 50
    assert len(np.unique(i)) == len(np.unique(j)) == len(i)
    error = (pair.true_inverse(pair.moving_spots[j]) - pair.spots[i]) * pair.grid.spacing
    if variant.jitter == 0:
        np.testing.assert_allclose(error, 0, atol=1e-8)
        np.testing.assert_allclose(pair.true_map(pair.spots[i]), pair.moving_spots[j], atol=1e-8)
    else:
        assert error.std(axis=0) == pytest.approx([variant.jitter] * 3, rel=0.2)
        assert abs(error.mean()) < 0.05
    for points in (pair.spots, pair.moving_spots):
        assert ((points >= 0) & (points <= np.array(pair.grid.shape) - 1)).all()
    assert pair.visible(pair.spots[i]).mean() > 0.98


@pytest.mark.parametrize("name", ["published", "other spots", "turned", "jumps"])
def test_spots_are_where_the_points_say(name: str) -> None:
    pair = benchmark_pair("small", "multi_point", 2, variant=VARIANTS[name])
    for image, points in ((pair.reference, pair.spots), (pair.moving, pair.moving_spots)):
        last = np.array(image.shape) - 1
        deep = ((points > 2) & (points < last - 2)).all(axis=1)
        deep &= (np.abs(points[:, 1:] - last[1:] / 2) > 5).all(axis=1)
        values = ndimage.map_coordinates(image.astype(float), points[deep].T, order=1)
        assert np.median(values) > 150
        aside = ndimage.map_coordinates(image.astype(float), (points[deep] + [0, 0, 7]).T, order=1)
        assert np.median(aside) < 60


def test_seed_decides_everything() -> None:
    one, same, other = (small(seed=seed) for seed in (1, 1, 2))
    assert (one.reference == same.reference).all()
    assert (one.moving == same.moving).all()
    assert (one.reference != other.reference).any()
    assert (one.pull(one.spots) != other.pull(one.spots)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"jitter": 0.5}, {"amplitude_to_noise": 3.0}, {"own_noise": True}, {"displacement": 1.0},
        {"rotation": 20.0}, {"jump": 3.0},
    ],
)  # fmt: skip
def test_an_option_leaves_the_reference_spots_alone(options: dict[str, Any]) -> None:
    base = {"drop_out": 0.3, "spurious": 0.3}
    plain, varied = small(**base), small(**base, **options)
    assert (plain.spots == varied.spots).all()
    assert (plain.reference_names == varied.reference_names).all()
    assert (plain.moving_names == varied.moving_names).all()
    amplitudes = (pair.reference_volume.amplitudes for pair in (plain, varied))
    assert np.equal(*amplitudes).all()
    if "amplitude_to_noise" not in options:
        assert (plain.reference == varied.reference).all()
    assert (plain.moving != varied.moving).any()


def test_shares_are_as_asked() -> None:
    full = benchmark_pair("large", variant=BenchmarkVariant(displacement=0.0))
    assert len(full.spots) == len(full.moving_spots) == len(full.pairs) == 1500
    last: set[int] = set()
    for share in (0.1, 0.3, 0.5):
        pair = benchmark_pair(
            "large", variant=BenchmarkVariant(displacement=0.0, drop_out=share, spurious=share)
        )
        true = 1500 - round(share * 1500)
        assert len(pair.spots) == len(pair.moving_spots) == true + round(share * 1500)
        assert len(pair.pairs) == pytest.approx(1500 * (1 - share) ** 2, abs=40)
        # False spots are nowhere near those of the other image, but by chance.
        false = np.setdiff1d(np.arange(len(pair.spots)), pair.pairs[:, 0])
        near = cKDTree(pair.moving_spots).query(pair.spots[false])[0] < 1e-6
        assert near.mean() < 0.02
        missed = set(range(1500)) - set(pair.reference_names.tolist())
        assert last < missed
        last = missed


def test_denser_tissue_holds_the_sparser_one() -> None:
    sparse, dense = small(), small(density=10.0)
    assert len(dense.spots) == 10 * len(sparse.spots)
    assert (dense.spots[: len(sparse.spots)] == sparse.spots).all()


def test_displacement_in_spacings_of_the_spots() -> None:
    for field in ("polynomial_small", "multi_point"):
        for density in (1.0, 8.0):
            pair = small(field, displacement=0.5, density=density)
            nearest = np.median(cKDTree(pair.spots).query(pair.spots, k=2)[0][:, 1])
            sized = benchmark_field(field, SMALL[0], 1, size=0.5 * nearest)
            np.testing.assert_allclose(pair.pull(pair.spots), sized(pair.spots))
    # Dropped spots do not change it.
    dropped = small(field, displacement=0.5, density=8.0, drop_out=0.5)
    np.testing.assert_allclose(dropped.pull(pair.spots), pair.pull(pair.spots))


def test_rotation_is_on_top_of_the_deformation() -> None:
    plain, turned = small(), small(rotation=90.0)
    middle = (np.array(SMALL[0]) - 1) / 2
    points = np.random.default_rng(0).uniform(0, 40, (20, 3))
    # A quarter turn: what lies along x in the moving image lies along y in the reference.
    z, y, x = (points - middle).T
    before = np.stack([z, x, -y], axis=1) + middle
    np.testing.assert_allclose(turned.pull(points), plain.pull(before), atol=1e-9)


def test_thick_planes_show_the_same_tissue() -> None:
    fine = benchmark_pair("small", "multi_point", 2, variant=BenchmarkVariant(subpixel=True))
    thick = benchmark_pair(
        "small", "multi_point", 2, variant=BenchmarkVariant(subpixel=True, z_step=4)
    )
    assert thick.grid.shape == (4, 256, 256)
    assert thick.grid.spacing == (4.0, 1.0, 1.0)
    # Planes 0, 4, 8, 12 of the same spots, which have the same size in the world.
    options = {"amplitude_to_noise": np.inf, "subpixel": True}
    clean = [
        benchmark_pair("small", "multi_point", 2, variant=BenchmarkVariant(**options, z_step=step))
        for step in (1.0, 4.0)
    ]
    assert (clean[0].reference[::4] == clean[1].reference).all()
    index = thick.pull.grid.to_index(fine.spots)
    inside = (index <= np.array(thick.grid.shape) - 1).all(axis=1)
    np.testing.assert_allclose(thick.spots, index[inside])
    np.testing.assert_allclose(
        thick.grid.to_world(thick.pull(thick.spots)), fine.pull(fine.spots[inside]), atol=1e-9
    )
    at_voxels = benchmark_pair("small", variant=BenchmarkVariant(z_step=4)).spots
    assert (at_voxels == np.rint(at_voxels)).all()


def test_jumps_shift_each_field_of_view() -> None:
    jump = 4.0
    still, torn = (
        benchmark_pair("small", "polynomial_small", 2, variant=BenchmarkVariant(jump=length))
        for length in (0.0, jump)
    )
    middle = (np.array(still.grid.shape[1:]) - 1) / 2
    shifts = []
    for rows in (0, 1):
        for columns in (0, 1):
            # A view of the torn image is the untorn one, moved as a whole by whole and half voxels.
            inner = np.random.default_rng(0).uniform(10, middle - 10, (50, 2))
            points = np.hstack([np.full((50, 1), 8.0), inner + middle * [rows, columns]])
            seen = torn.pull(points)
            shift = points - still.true_map(seen)
            shifts.append(shift.mean(axis=0))
            np.testing.assert_allclose(shift, [shifts[-1]] * 50, atol=1e-8)
            assert np.hypot(*shifts[-1][1:]) == pytest.approx(jump)
            np.testing.assert_allclose(torn.true_map(seen), points, atol=1e-8)
    assert np.abs(np.diff(shifts, axis=0)[:, 1:]).min(axis=0).max() > 0.01


def test_seams_lose_some_places_and_show_none_wrong() -> None:
    pair = benchmark_pair("small", "gaussian_small", 2, variant=BenchmarkVariant(jump=6.0))
    last = np.array(pair.grid.shape) - 1
    points = np.random.default_rng(0).uniform(0, last, (4000, 3))
    moved = pair.true_map(points)
    known = np.isfinite(moved).all(axis=1)
    assert 0.9 < known.mean() < 1
    np.testing.assert_allclose(pair.pull(moved[known]), points[known], atol=1e-9)
    seam = np.abs(points[:, 1:] - last[1:] / 2).min(axis=1)
    assert seam[~known].max() < 6 + 8


def test_noise_of_the_variants() -> None:
    options = {"displacement": 0.0}
    published, own, weak, none = (
        benchmark_pair(((20, 100, 100), 2), variant=BenchmarkVariant(**options, **more))
        for more in (
            {},
            {"own_noise": True},
            {"amplitude_to_noise": 100.0},
            {"amplitude_to_noise": np.inf},
        )
    )
    far = cKDTree(published.spots).query(indices(published.grid.shape))[0] > 14

    def rest(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return image.ravel()[far].astype(float)

    assert rest(published.reference).mean() == pytest.approx(19.5, abs=0.1)
    assert rest(published.reference).std() == pytest.approx(np.sqrt(50), rel=0.02)
    assert (published.moving == published.reference).all()
    assert abs(np.corrcoef(rest(own.reference), rest(own.moving))[0, 1]) < 0.01
    assert rest(weak.reference).std() == pytest.approx(np.hypot(2, 12**-0.5), rel=0.02)
    assert (rest(none.reference) == 20).all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="Unknown volume 'huge'"):
        benchmark_pair("huge")
    with pytest.raises(InputError, match="Unknown deformation 'swirl'"):
        benchmark_pair("tiny", "swirl")
    with pytest.raises(InputError, match=r"shape \(4, 50, 50\)"):
        benchmark_pair(((4, 50, 50), 3))
    with pytest.raises(InputError, match="seed -1"):
        benchmark_pair("tiny", seed=-1)
    with pytest.raises(InputError, match="leaves 1 plane"):
        benchmark_pair("tiny", variant=BenchmarkVariant(z_step=8.0))
    with pytest.raises(InputError, match="needs two spots"):
        benchmark_pair(((8, 30, 30), 1), variant=BenchmarkVariant(displacement=1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", 0.0), ("drop_out", 1.0), ("drop_out", -0.1), ("spurious", -1.0),
        ("jitter", np.nan), ("amplitude_to_noise", 0.0), ("displacement", -1.0),
        ("rotation", np.inf), ("z_step", 0.5), ("jump", -2.0), ("amplitude_to_noise", np.nan),
    ],
)  # fmt: skip
def test_variants_name_what_is_wrong(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} {value}"):
        BenchmarkVariant(**{name: value})


def test_variants_name_all_that_is_wrong() -> None:
    with pytest.raises(InputError, match=r"density -1 .*jump -3 .*amplitude_to_noise 0 "):
        BenchmarkVariant(density=-1, jump=-3, amplitude_to_noise=0)


def test_sizes_are_those_of_the_definition() -> None:
    assert BENCHMARK_VOLUMES["medium"] == ((32, 512, 512), 400)
    for name in BENCHMARK_VOLUMES:
        pair = benchmark_pair(name)
        assert (pair.grid.shape, len(pair.spots)) == BENCHMARK_VOLUMES[name]


SCRIPT = """
import numpy as np
from tilereg.synthetic import BenchmarkVariant, benchmark_pair
np.seterr(over="ignore")  # whole numbers are to wrap around
pair = benchmark_pair(((8, 20, 22), 9), "multi_point", 3, variant=BenchmarkVariant(rotation=9))
print(pair.reference.astype(int).ravel().tolist(), pair.moving.astype(int).ravel().tolist())
"""


def test_the_compiler_changes_nothing() -> None:
    if "NUMBA_DISABLE_JIT" in os.environ:
        pytest.skip("The compiler is off already.")
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=os.environ | extra, check=True, capture_output=True
        ).stdout
        for extra in ({}, {"NUMBA_DISABLE_JIT": "1"})
    ]
    # Compiled code may join a product and a sum: a voxel in thousands rounds otherwise.
    one, two = (
        np.array([*map(int, text.replace(b"[", b"").replace(b"]", b"").replace(b",", b"").split())])
        for text in outputs
    )
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() < 1e-3
