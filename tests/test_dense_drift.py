"""The textbook drift: its equations, theorems of expectation and maximisation, and the fast one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from clouds import make_pair
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from tilereg.affine import fit_affine, fit_rigid, fit_translation
from tilereg.errors import ResourceError
from tilereg.lattice import Lattice
from tilereg.matching import descent as descent_module
from tilereg.matching import match_spots
from tilereg.matching.cpd_dense import TOLERANCE, held_by_lattice
from tilereg.matching.dense_drift import Dense, affine, nonrigid, rigid, translation
from tilereg.matching.descent import Descent, check_size, expectation
from tilereg.matching.drift import drift, local_density
from tilereg.matching.gaussian_kernel import kernel, kernel_factor, kernel_sum
from tilereg.matching.problem import Problem
from tilereg.smoothing import Coherent
from tilereg.transform import Affine

Floats = NDArray[np.float64]


def cloud(count: int, ndim: int, seed: int = 0) -> Floats:
    """Return random points at a mean spacing of about one."""
    side = (count / (0.17 if ndim == 3 else 0.25)) ** (1 / ndim)
    return np.random.default_rng(seed).uniform(0, side, (count, ndim))


def turned(ndim: int, degrees: float) -> Floats:
    if ndim == 2:
        return np.asarray(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2])
    return np.asarray(Rotation.from_rotvec([0.01 * degrees, 0, 0.015 * degrees]).as_matrix())


def waves(points: Floats, size: float = 0.3) -> Floats:
    return size * np.sin(points[:, ::-1] / 4)


def posterior(target: Floats, moved: Floats, sigma: float, w: float, density: float) -> Floats:
    """Return Eq. 6, written out."""
    ndim = target.shape[1]
    P = np.empty((len(moved), len(target)))
    c = (2 * np.pi * sigma**2) ** (ndim / 2) * w / (1 - w) * len(moved) / len(target) * density
    for n, x in enumerate(target):
        near = np.array([math.exp(-((x - y) @ (x - y)) / (2 * sigma**2)) for y in moved])
        P[:, n] = near / (near.sum() + c)
    return P


@pytest.mark.parametrize("far", [0.0, 1e5])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_sums_are_those_of_the_posterior(ndim: int, far: float) -> None:
    moved, target = cloud(40, ndim) + far, cloud(30, ndim, 1) + far
    P = posterior(target, moved, 0.5, 0.3, 2.0)
    sums = expectation(target, moved, 0.25, 0.3, 2.0)
    np.testing.assert_allclose(sums.P1, P.sum(axis=1), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(sums.Pt1, P.sum(axis=0), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(sums.PX, P @ target, rtol=1e-6, atol=1e-7 * (1 + far))


def one_step(source: Floats, target: Floats, sigma: float) -> tuple[Floats, float, Floats, float]:
    """Return posterior and w after one expectation: of the textbook, and of the fast drift."""
    density = local_density(target)
    options = Descent(sigma=sigma, density=density, is_w_free=True, max_iterations=1)
    plain = nonrigid(source, target, w=0.4, beta=8.0, alpha=10.0, descent=options)
    prior = Coherent(8.0, 0.1)
    lattice = Lattice.cover(source.min(axis=0), source.max(axis=0), prior.spacing)
    fast = drift(
        source, source, target, lattice, prior,
        density=density, sigma=sigma, w=0.4, max_iterations=1,
    )  # fmt: skip
    return plain.posterior, plain.w, fast.posterior, fast.w


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_fast_drift_has_the_same_posterior_where_pairs_are_near_or_far(ndim: int) -> None:
    """Pairs within three deviations or beyond nine: nothing is cut off between."""
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * ndim, indexing="ij"), axis=-1)
    source = grid.reshape(-1, ndim)
    rng = np.random.default_rng(0)
    step = rng.normal(size=source.shape)
    step *= rng.uniform(0, 0.25, (len(source), 1)) / np.linalg.norm(step, axis=1, keepdims=True)
    target = np.concatenate([(source + step)[::2], grid.reshape(-1, ndim)[:7] + 20.0])
    plain, plain_w, fast, fast_w = one_step(source, target, 0.083)
    assert 5 < (plain > 0.5).sum() < len(source)
    np.testing.assert_allclose(fast, plain, atol=1e-10)
    assert fast_w == pytest.approx(plain_w, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.33, 1.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_fast_drift_misses_what_it_cuts_off_and_no_more(ndim: int, sigma: float) -> None:
    source = cloud(200, ndim)
    target = np.concatenate([source[:150] + waves(source[:150], 0.1), cloud(50, ndim, 2)])
    plain, plain_w, fast, fast_w = one_step(source, target, sigma)
    square = cdist(source, target, "sqeuclidean")
    near = np.exp(-square / (2 * sigma**2))
    outlier = 0.4 / 0.6 * local_density(target) * (2 * np.pi * sigma**2) ** (ndim / 2)
    P = near / (near.sum(axis=0) + outlier)
    is_cut = square >= (3.5 * sigma) ** 2
    # What is cut off of a denominator goes to the others of the same target, and is as much.
    assert np.abs(fast - plain).sum() <= 2 * P[is_cut].sum() + 1e-9
    assert np.abs(fast - plain).mean() < 0.02
    assert fast_w == pytest.approx(plain_w, abs=0.02)


@pytest.mark.parametrize(
    ("run", "fit"), [(translation, fit_translation), (rigid, fit_rigid), (affine, fit_affine)]
)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_step_is_the_weighted_fit_to_the_mean_partners(
    ndim: int, run: Callable[..., Dense], fit: Callable[..., Affine]
) -> None:
    source, target = cloud(60, ndim), cloud(60, ndim) @ turned(ndim, 3.0).T + 0.3
    found = run(source, target, w=0.2, descent=Descent(sigma=0.6, max_iterations=1))
    sums = expectation(target, source, 0.36, 0.2)
    plain = fit(source, sums.PX / sums.P1[:, None], sums.P1)
    np.testing.assert_allclose(found.affine.matrix, plain.matrix, atol=1e-7)
    np.testing.assert_allclose(found.moved, plain(source), atol=1e-6)
    P = posterior(target, source, 0.6, 0.2, 1.0)
    square = (P * cdist(found.moved, target, "sqeuclidean")).sum() / (ndim * P.sum())
    assert found.sigma == pytest.approx(math.sqrt(square), rel=1e-9)


@pytest.mark.parametrize("left_out", [None, 1e-12])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_step_solves_the_equation_of_the_weights(ndim: int, left_out: float | None) -> None:
    """Eq. 22, times d(P1): and the field at the source is what has moved it."""
    source = cloud(70, ndim)
    target = source + waves(source)
    beta, alpha, sigma = 3.0, 5.0, 0.4
    options = Descent(sigma=sigma, max_iterations=1)
    found = nonrigid(
        source, target, w=0.1, beta=beta, alpha=alpha, descent=options, left_out=left_out
    )
    sums = expectation(target, source, sigma**2, 0.1)
    G = np.exp(-cdist(source, source, "sqeuclidean") / (2 * beta**2))
    shift = found.moved - source
    np.testing.assert_allclose(G @ found.weights, shift, atol=1e-6)
    np.testing.assert_allclose(kernel_sum(source, source, found.weights, beta), shift, atol=1e-6)
    if left_out is None:
        system = sums.P1[:, None] * G + alpha * sigma**2 * np.eye(70)
        right = sums.PX - sums.P1[:, None] * source
        np.testing.assert_allclose(system @ found.weights, right, atol=1e-9)


def objective(
    target: Floats, found: Dense, w: float, beta: float, alpha: float, source: Floats
) -> float:
    """Return the negative log-likelihood and the field's energy, Eqs. 2 and 17."""
    ndim = target.shape[1]
    square = cdist(found.moved, target, "sqeuclidean")
    near = np.exp(-square / (2 * found.sigma**2)) / (2 * np.pi * found.sigma**2) ** (ndim / 2)
    likely = (1 - w) * near.mean(axis=0) + w / len(target)
    energy = np.einsum("md,mn,nd->", found.weights, kernel(source, source, beta), found.weights)
    return float(-np.log(likely).sum() + alpha / 2 * energy)


@pytest.mark.parametrize("run", ["rigid", "affine", "nonrigid"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_likelihood_never_falls(ndim: int, run: str) -> None:
    source = cloud(80, ndim)
    target = np.concatenate([source[:60] + waves(source[:60]) + 0.2, cloud(20, ndim, 3)])
    beta, alpha, w = 4.0, 2.0, 0.25
    values = []
    for count in range(1, 16):
        options = Descent(sigma=1.0, max_iterations=count, tolerance=0.0)
        if run == "nonrigid":
            found = nonrigid(source, target, w=w, beta=beta, alpha=alpha, descent=options)
        else:
            found = {"rigid": rigid, "affine": affine}[run](source, target, w=w, descent=options)
        values.append(objective(target, found, w, beta, alpha, source))
    assert np.diff(values).max() < 1e-6 * abs(values[0])
    assert values[-1] < values[0] - 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_straight_maps_are_found(ndim: int) -> None:
    source = cloud(200, ndim)
    matrix = turned(ndim, 4.0)
    others = cloud(100, ndim, 5)
    for run, change in ((rigid, np.eye(ndim)), (affine, np.diag([1.02, 0.98, 1.01][:ndim]))):
        true = Affine(matrix @ change, np.full(ndim, 0.2))
        centred = source - source.mean(axis=0)
        target = np.concatenate([true(centred)[:150], others - others.mean(axis=0)])
        options = Descent(sigma=1.0, density=local_density(target), is_w_free=True)
        found = run(centred, target, w=0.5, descent=options)
        assert found.is_settled
        np.testing.assert_allclose(found.affine.matrix, true.matrix, atol=1e-4)
        assert found.w == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_smooth_map_is_found_without_a_start(ndim: int) -> None:
    """As published: sigma from all differences, w as given, outliers of density one."""
    source = cloud(150, ndim)
    target = source + waves(source)
    found = nonrigid(source, target, w=0.1, beta=4.0, alpha=1.0, descent=Descent())
    assert np.median(np.linalg.norm(found.moved - target, axis=1)) < 0.05
    assert found.w == 0.1


def test_clouds_that_are_the_same_stay() -> None:
    source = cloud(100, 3)
    found = nonrigid(source, source, w=0.1, beta=4.0, alpha=1.0, descent=Descent(sigma=0.5))
    np.testing.assert_allclose(found.moved, source, atol=1e-6)
    assert found.is_settled
    assert 0 < found.sigma < 1e-3


def test_clouds_out_of_reach_have_no_partners() -> None:
    source = cloud(50, 3)
    found = nonrigid(source, source + 1e3, w=0.5, beta=4.0, alpha=1.0, descent=Descent(sigma=0.5))
    assert not found.is_settled
    assert found.num_iterations == 0
    np.testing.assert_array_equal(found.moved, source)
    assert not found.weights.any()


@pytest.mark.parametrize("left_out", [None, 1e-6])
def test_units_and_order_change_nothing(left_out: float | None) -> None:
    source = cloud(90, 3)
    target = np.concatenate([source[:70] + waves(source[:70]), cloud(20, 3, 4)])
    options = Descent(sigma=0.7, density=0.2, is_w_free=True)

    def run(unit: float, rows: NDArray[np.int64], others: NDArray[np.int64]) -> Dense:
        scaled = dataclasses.replace(options, sigma=0.7 * unit, density=0.2 / unit**3)
        return nonrigid(
            unit * source[rows],
            unit * target[others],
            w=0.5,
            beta=5.0 * unit,
            alpha=4.0 / unit**2,
            descent=scaled,
            left_out=left_out,
        )

    straight, across = np.arange(90), np.random.default_rng(0).permutation(90)
    plain = run(1.0, straight, straight)
    np.testing.assert_allclose(run(1e3, straight, straight).moved / 1e3, plain.moved, atol=1e-6)
    # Of equals the first is a pivot, so a low rank is not quite the same.
    most = 1e-6 if left_out is None else 3e-3
    np.testing.assert_allclose(run(1.0, across, across).moved, plain.moved[across], atol=most)


def test_an_offset_is_a_map_that_is_not_sought() -> None:
    source = cloud(80, 3)
    target = source + waves(source)
    gap = 50.0 * (np.arange(80) % 3)[:, None] * [1.0, 0.0, 0.0]
    options = Descent(sigma=0.3)
    plain = nonrigid(source, target, w=0.1, beta=5.0, alpha=1.0, descent=options)
    apart = nonrigid(
        source, target + gap, w=0.1, beta=5.0, alpha=1.0,
        descent=dataclasses.replace(options, offset=gap),
    )  # fmt: skip
    # Apart, unlike points take no part of one another: nearly the same here.
    assert np.abs(apart.moved - source).max() > 0.2
    np.testing.assert_allclose(apart.moved, plain.moved, atol=0.03)


@pytest.mark.parametrize("left_out", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_low_rank_leaves_out_what_it_says(ndim: int, left_out: float) -> None:
    points = np.concatenate([cloud(150, ndim), cloud(150, ndim)[:20]])
    G = kernel(points, points, 6.0)
    L, pivots = kernel_factor(points, 6.0, left_out)
    assert len(np.unique(pivots)) == len(pivots) < 150
    rest = G - L @ L.T
    assert np.trace(rest) <= left_out * len(points)
    assert np.linalg.eigvalsh(rest).min() > -1e-9
    np.testing.assert_allclose(rest[pivots], 0, atol=1e-7)


def test_the_low_rank_moves_as_the_kernel_does() -> None:
    source = cloud(200, 3)
    target = source + waves(source)
    options = Descent(sigma=0.5, is_w_free=True)
    exact, low = (
        nonrigid(source, target, w=0.2, beta=6.0, alpha=5.0, descent=options, left_out=share)
        for share in (None, 1e-7)
    )
    np.testing.assert_allclose(low.moved, exact.moved, atol=2e-3)
    assert (low.weights != 0).any(axis=1).sum() < 150


def test_a_published_package_takes_the_same_steps() -> None:
    pycpd = pytest.importorskip("pycpd", reason="pycpd is there for benchmarks only")
    source = cloud(60, 3)
    target = np.concatenate([source[:45] + waves(source[:45]), cloud(15, 3, 6)])
    other = pycpd.DeformableRegistration(
        X=target, Y=source, alpha=2.0, beta=4.0, w=0.2, max_iterations=12, tolerance=0.0
    )
    other.register()
    options = Descent(max_iterations=12, tolerance=0.0)
    found = nonrigid(source, target, w=0.2, beta=4.0, alpha=2.0, descent=options)
    np.testing.assert_allclose(found.moved, other.TY, atol=1e-6)
    assert found.sigma**2 == pytest.approx(other.sigma2, rel=1e-6)


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ResourceError, match=r"20000 and 30000 spots need 4\.8 GB.*method='cpd'"):
        check_size(20_000, 30_000)
    check_size(10_000, 10_000)


def test_an_engine_refuses_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent_module, "_MOST_BYTES", 1e5)
    pair = make_pair(300)
    with pytest.raises(ResourceError, match="method='cpd'"):
        match_spots(pair.fixed, pair.moving, method="cpd-dense")


@pytest.mark.parametrize("beta", [3.0, 8.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_lattice_holds_the_sum_of_kernels(ndim: int, beta: float) -> None:
    fixed = cloud(250, ndim)
    low, high = fixed.min(axis=0), fixed.max(axis=0)
    problem = Problem(
        fixed=fixed, moving=fixed, low=low, high=high, held=np.zeros(250, dtype=bool),
        w=0.5, beta=None, field="auto", max_iterations=50,
    )  # fmt: skip
    found = nonrigid(
        fixed, fixed + waves(fixed, 1.0), w=0.1, beta=beta, alpha=0.5, descent=Descent(sigma=0.3),
        left_out=1e-5,
    )  # fmt: skip
    pose = Affine(turned(ndim, 20.0), np.full(ndim, 3.0))
    map_ = held_by_lattice(problem, pose, found, beta)
    points = np.random.default_rng(1).uniform(low, high, (2000, ndim))
    exact = pose(points) + kernel_sum(points, fixed, found.weights, beta)
    bent = exact - pose(points)
    assert np.linalg.norm(bent, axis=1).max() > 0.5
    assert np.linalg.norm(map_(points) - exact, axis=1).max() < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"ndim": 2}, {"overlap": 0.5}])
def test_the_engine_of_all_pairs_finds_the_same_map(options: dict[str, float]) -> None:
    """Localisation of 0.3 voxels an axis in both clouds leaves more than the two differ by."""
    pair = make_pair(400, **options)  # type: ignore[arg-type]
    for field, most in (("coherent", 0.15), ("auto", 0.1)):
        fast, plain = (
            match_spots(pair.fixed, pair.moving, method=method, field=field)
            for method in ("cpd", "cpd-dense")
        )
        assert fast.is_ok
        assert plain.is_ok
        gap = fast.transform(pair.fixed) - plain.transform(pair.fixed)
        assert np.median(np.linalg.norm(gap, axis=1)) < most
        assert plain.residual_sigma == pytest.approx(fast.residual_sigma, rel=0.1)
        assert plain.w == pytest.approx(fast.w, abs=0.05)
