"""Synthetic rounds: any chunking gives the same voxels, and the truth is true."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from tilereg import metrics
from tilereg.deformations import Deformation, GaussianBumps, PolynomialField, invert
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.kernels.rendering import add_noise
from tilereg.synthetic import (
    BENCHMARK_FIELDS,
    SyntheticRounds,
    SyntheticVolume,
    benchmark_field,
    demo_rounds,
    render_spots,
)
from tilereg.windows import Window, iter_windows

SMALL = (20, 70, 90)


@pytest.fixture(scope="module")
def rounds() -> SyntheticRounds:
    return demo_rounds(SMALL, num_spots=150, shift=6.0, bump=1.5, seed=3)


def plain_spots(
    positions: NDArray[np.float64],
    amplitudes: NDArray[np.float64],
    sigma: NDArray[np.float64],
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Evaluate every Gaussian at every voxel within five sigmas."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    image = np.zeros(shape)
    for position, amplitude in zip(positions, amplitudes, strict=True):
        t = (index - position) / sigma
        image += amplitude * np.exp(-0.5 * (t**2).sum(axis=-1)) * (np.abs(t) <= 5).all(axis=-1)
    return image


@pytest.mark.parametrize("shape", [(9, 12, 15), (20, 31), (1, 16, 16)])
def test_rendering_equals_the_formula(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(-4, np.array(shape) + 4, size=(30, len(shape)))
    amplitudes, sigma = rng.uniform(1, 5, size=30), rng.uniform(0.7, 2, size=len(shape))
    drawn = render_spots(positions, amplitudes, sigma, Window.whole(shape))
    np.testing.assert_allclose(drawn, plain_spots(positions, amplitudes, sigma, shape), atol=1e-12)


def test_rendering_refuses_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="2 spots of 3 amplitudes"):
        render_spots(np.zeros((2, 3)), np.ones(3), 1.0, Window.whole((3, 3, 3)))
    with pytest.raises(InputError, match="sigma must be > 0"):
        render_spots(np.zeros((2, 3)), np.ones(2), 0.0, Window.whole((3, 3, 3)))


@pytest.mark.parametrize("name", ["rotation", "shift", "bump"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_rounds_of_no_number_are_refused(name: str, number: float) -> None:
    with pytest.raises(InputError, match="must be finite"):
        demo_rounds((16, 64, 64), num_spots=20, **{name: number})


@pytest.mark.parametrize("chunks", [(7, 33, 64), (20, 70, 1), ((1, 19), (69, 1), (45, 45))])
def test_every_chunking_gives_the_same_voxels(
    rounds: SyntheticRounds, chunks: tuple[int | tuple[int, ...], ...]
) -> None:
    whole = rounds.fixed.read(rounds.fixed_grid.window)
    assert whole.dtype == np.uint16
    joined = np.zeros_like(whole)
    for unit in iter_windows(SMALL, chunks):
        joined[unit.window.slices] = rounds.fixed.read(unit.window)
    assert (joined == whole).all()


def test_volume_in_a_plane() -> None:
    flat = demo_rounds((120, 150), spacing=(0.3, 0.3), num_spots=60, shift=8.0, bump=2.0)
    whole = flat.read_moving(flat.moving_grid.window)
    part = Window((31, 70), (99, 71))
    assert whole.shape == flat.moving_grid.shape != flat.fixed_grid.shape
    assert (flat.read_moving(part) == whole[part.slices]).all()


def test_seed_decides_everything(rounds: SyntheticRounds) -> None:
    window = Window((3, 5, 7), (9, 40, 60))
    again = demo_rounds(SMALL, num_spots=150, shift=6.0, bump=1.5, seed=3)
    other = demo_rounds(SMALL, num_spots=150, shift=6.0, bump=1.5, seed=4)
    assert (again.read_moving(window) == rounds.read_moving(window)).all()
    assert (other.read_moving(window) != rounds.read_moving(window)).any()
    # Both rounds have noise of their own.
    difference = rounds.read_fixed(window).astype(float) - rounds.read_moving(window)
    assert difference.std() > 20


def test_volume_travels_to_other_processes(rounds: SyntheticRounds) -> None:
    window = Window((0, 0, 0), (4, 40, 40))
    copy = pickle.loads(pickle.dumps(rounds.fixed))
    assert (copy.read(window) == rounds.fixed.read(window)).all()


@pytest.mark.parametrize("window", [Window((0, 0, 0), (21, 5, 5)), Window((3, 3, 3), (3, 4, 4))])
def test_reads_only_inside(rounds: SyntheticRounds, window: Window) -> None:
    with pytest.raises(InputError, match="lie inside the volume"):
        rounds.read_fixed(window)


def test_noise_and_background_are_as_asked() -> None:
    volume = SyntheticVolume(
        grid=Grid(shape=(40, 100, 100)),
        positions_index=np.empty((0, 3)),
        amplitudes=np.empty(0),
        sigma_voxels=(1.0, 1.0, 1.0),
        background=1000.0,
        gradient=0.3,
        noise=15.0,
    )
    image = volume.read(volume.grid.window).astype(float)
    assert image.mean() == pytest.approx(1000, abs=1)
    assert image[-1].mean() - image[0].mean() == pytest.approx(100, abs=2)
    noise = image - ndimage.gaussian_filter(image, 4)
    assert noise[10:30, 10:-10, 10:-10].std() == pytest.approx(15, rel=0.03)
    assert abs(np.corrcoef(noise[:20].ravel(), noise[20:].ravel())[0, 1]) < 0.01


def test_points_pairs_and_map_agree(rounds: SyntheticRounds) -> None:
    fixed, moving = rounds.fixed_points, rounds.moving_points
    assert rounds.fixed_grid.contains(fixed).all()
    assert rounds.moving_grid.contains(moving).all()
    i, j = rounds.pairs.T
    assert 0 < len(i) < min(len(fixed), len(moving))
    np.testing.assert_array_equal(rounds.true_map(fixed[i]), moving[j])
    np.testing.assert_allclose(rounds.true_inverse(moving[j]), fixed[i], atol=1e-9)
    # Nothing else of one round is where a spot of the other belongs.
    rest = np.delete(np.arange(len(fixed)), i)
    gap = np.linalg.norm(rounds.true_map(fixed[rest])[:, None] - moving, axis=-1)
    assert gap.min() > 1e-6


def test_spots_are_where_the_points_say(rounds: SyntheticRounds) -> None:
    image = rounds.read_moving(rounds.moving_grid.window).astype(float)
    index = rounds.moving_grid.to_index(rounds.moving_points)
    deep = ((index > 4) & (index < np.array(image.shape) - 5)).all(axis=1)
    at_spots = ndimage.map_coordinates(image, index[deep].T, order=1)
    elsewhere = ndimage.map_coordinates(image, (index[deep] + [0, 4, 4]).T, order=1)
    assert np.median(at_spots) - np.median(elsewhere) > 100


def test_default_demo_is_a_fair_task() -> None:
    rounds = demo_rounds()
    bumps = np.linalg.norm(rounds.true_map.displacement(rounds.fixed_points), axis=1) / 0.3
    assert 6 < bumps.max() < 8
    shift = np.abs((rounds.true_map(rounds.fixed_points) - rounds.fixed_points).mean(axis=0))
    assert (shift[1:] / 0.3 > 20).all()
    share = len(rounds.pairs) / len(rounds.fixed_points)
    assert 0.5 < share < 0.7
    assert metrics.fold_share(rounds.true_map.jacobian(rounds.fixed_points)) == 0


def test_drop_out_is_as_asked() -> None:
    full = demo_rounds(num_spots=2000, drop_out=0.0)
    half = demo_rounds(num_spots=2000, drop_out=0.5)
    assert len(full.fixed_points) == pytest.approx(2000, rel=0.1)
    assert len(half.fixed_points) / len(full.fixed_points) == pytest.approx(0.5, abs=0.05)
    assert len(half.pairs) / len(half.fixed_points) < 0.55


def test_demo_refuses_what_folds() -> None:
    with pytest.raises(InputError, match=r"nearly fold.*smaller bumps"):
        demo_rounds(SMALL, bump=40.0)
    with pytest.raises(InputError, match="drop-out 1"):
        demo_rounds(SMALL, drop_out=1.0)


def deformations() -> dict[str, Deformation]:
    rng = np.random.default_rng(1)
    bumps = GaussianBumps(
        np.eye(3) + 0.05 * rng.normal(size=(3, 3)),
        rng.normal(size=3),
        rng.uniform(0, 50, (4, 3)),
        rng.normal(size=(4, 3)),
        np.array([9.0, 10.0, 12.0, 15.0]),
    )
    polynomial = PolynomialField(rng.uniform(-0.5, 0.5, (3, 6)), (30, 50, 50))
    plane = PolynomialField(rng.uniform(-0.5, 0.5, (3, 6)), (1, 50, 50))
    return {"bumps": bumps, "polynomial": polynomial, "one plane": plane}


@pytest.mark.parametrize("name", deformations())
def test_derivatives_and_inverse(name: str) -> None:
    deformation = deformations()[name]
    points = np.random.default_rng(2).uniform(0, 30, (40, 3))
    jacobian = deformation.jacobian(points)
    for axis, step in enumerate(np.eye(3) * 1e-5):
        slope = (deformation(points + step) - deformation(points - step)) / 2e-5
        np.testing.assert_allclose(jacobian[:, :, axis], slope, atol=1e-8)
    back = invert(deformation, deformation(points), points + 1.0)
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_inverse_is_nan_where_there_is_none() -> None:
    # The first map sends everything to z = 0; the second moves nothing.
    flat = GaussianBumps(
        np.diag([0.0, 1.0, 1.0]), np.zeros(3), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0)
    )
    identity = PolynomialField(np.zeros((3, 6)), (3, 3, 3))
    targets = np.array([[1.0, 2.0, 3.0]])
    assert np.isnan(invert(flat, targets, np.zeros((1, 3)))).all()
    np.testing.assert_allclose(invert(identity, targets, np.zeros((1, 3))), targets)


@pytest.mark.parametrize("name", BENCHMARK_FIELDS)
def test_benchmark_fields_have_the_size_of_their_definition(name: str) -> None:
    shape = (32, 512, 512)
    pull = benchmark_field(name, shape, seed=5)
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (4000, 3)) * (np.array(shape) - 1)
    corners = np.array(np.meshgrid([0, 31], [0, 511], [0, 511])).reshape(3, -1).T
    points = np.vstack([points, corners, getattr(pull, "centres", corners)]).astype(float)
    moved = np.abs(pull(points) - points)
    size = {"small": 15.0, "large": 30.0, "point": 20.0}[name.rsplit("_", maxsplit=1)[1]]
    if isinstance(pull, PolynomialField):
        np.testing.assert_allclose(moved.max(axis=0), size)
    elif name.startswith("gaussian"):
        assert np.linalg.norm(moved, axis=1).max() == pytest.approx(size)
    else:
        np.testing.assert_allclose(np.linalg.norm(pull.amplitudes, axis=1), size)


@pytest.mark.parametrize("name", BENCHMARK_FIELDS)
def test_benchmark_fields_take_any_size(name: str) -> None:
    points = np.random.default_rng(0).uniform(0, 30, (50, 3))
    preset, double = (benchmark_field(name, (32, 512, 512), 5, size=n) for n in (None, 60.0))
    size = {"small": 15.0, "large": 30.0, "point": 20.0}[name.rsplit("_", maxsplit=1)[1]]
    moved = (preset(points) - points) * 60 / size
    np.testing.assert_allclose(double(points) - points, moved, atol=1e-9)
    still = benchmark_field(name, (32, 512, 512), 5, size=0.0)
    np.testing.assert_allclose(still(points), points)


@pytest.mark.parametrize("name", deformations())
def test_boxes_hold_what_the_map_makes_of_boxes(name: str) -> None:
    deformation = deformations()[name]
    assert isinstance(deformation, GaussianBumps | PolynomialField)
    rng = np.random.default_rng(3)
    for _ in range(20):
        low = rng.uniform(-10, 40, 3)
        high = low + rng.uniform(0, 30, 3)
        small, large = deformation.bounds(low, high)
        moved = deformation(rng.uniform(low, high, (2000, 3)))
        assert (moved >= small - 1e-9).all()
        assert (moved <= large + 1e-9).all()
        # A point is a box that is not made larger.
        np.testing.assert_allclose(deformation.bounds(low, low), [deformation(low[None])[0]] * 2)


def test_benchmark_fields_refuse_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="Unknown deformation 'swirl'"):
        benchmark_field("swirl", (8, 8, 8), 0)
    with pytest.raises(InputError, match="size -1"):
        benchmark_field("multi_point", (8, 8, 8), 0, size=-1.0)
    with pytest.raises(InputError, match=r"shape \(8, 8\)"):
        benchmark_field("multi_point", (8, 8), 0)


def noise(shape: tuple[int, ...], key: int = 1, start: Sequence[int] = (0, 0, 0)) -> NDArray[Any]:
    """Return white noise of deviation 1."""
    block = np.zeros(shape)
    add_noise(block, np.array(start), np.uint64(key), 1.0)
    return block


def test_noise_is_white_and_gaussian() -> None:
    values = noise((40, 100, 100))
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    # The kurtosis tells of the tails: 3 / 400,000 voxels are beyond 4.5 sigmas.
    assert stats.kurtosis(values.ravel()) == pytest.approx(0, abs=0.03)
    assert (np.abs(values) > 4).sum() == pytest.approx(400_000 * 2 * stats.norm.sf(4), abs=15)
    power = np.abs(np.fft.rfftn(values)) ** 2 / values.size
    assert stats.kstest(power[1:-1, 1:-1, 1:-1].ravel(), "expon").pvalue > 0.01


@pytest.mark.parametrize("other", [2, 1 + 2**63, 1 + 0x9E3779B97F4A7C15])
def test_noise_of_other_keys_is_independent(other: int) -> None:
    # The last key is the first one's, a voxel further, in what each voxel counts by.
    one, two = noise((20, 100, 100)), noise((20, 100, 100), other % 2**64)
    for shift in (-1, 0, 1):
        assert abs(np.corrcoef(one.ravel(), np.roll(two, shift, axis=2).ravel())[0, 1]) < 0.008


def test_noise_does_not_depend_on_the_block() -> None:
    whole = noise((6, 7, 8), start=(100, 2**20, 2721))
    part = noise((2, 3, 1), start=(103, 2**20 + 4, 2723))
    assert (part == whole[3:5, 4:7, 2:3]).all()
