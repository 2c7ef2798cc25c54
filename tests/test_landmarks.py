"""Known pairs: their pose, their pull, their weight, and whether the spots agree with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clouds import Pair, make_pair, make_problem
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from test_growth import bent, scattered

from tilereg import Affine, InputError, match_spots
from tilereg.kriging import Deviation, LeaveOut, Prior, fit_kriging, leave_one_out, residuals_of
from tilereg.lattice import Lattice
from tilereg.matching.drift import Known, drift
from tilereg.matching.engines import check_given
from tilereg.matching.landmarks import judge_landmarks, landmark_pose, warnings_of
from tilereg.points import Correspondences, Landmarks
from tilereg.smoothing import Coherent
from tilereg.transform import Transform

Floats = NDArray[np.float64]


def marks(
    pair: Pair, count: int, *, wrong: dict[int, float] | None = None, click: float = 0.0
) -> tuple[Floats, Floats]:
    """Return true landmarks, clicked with some noise; some are off along the last axis."""
    rng = np.random.default_rng(11)
    low, high = pair.fixed.min(axis=0), pair.fixed.max(axis=0)
    points = rng.uniform(low, high, (count, len(low)))
    partners = pair.true_map(points) + rng.normal(0, click, points.shape)
    for row, by in (wrong or {}).items():
        partners[row, -1] += by
    return points, partners


def error(transform: Transform, pair: Pair) -> float:
    gap = transform(pair.fixed) - pair.true_map(pair.fixed)
    return float(np.median(np.linalg.norm(gap, axis=1)))


def test_they_give_a_pose_that_no_search_finds() -> None:
    """Few have a partner, and the clouds are turned: neighbourhoods are not alike."""
    pair = make_pair(1500, overlap=0.12, rotation=120.0)
    assert not match_spots(pair.fixed, pair.moving).is_ok
    match = match_spots(pair.fixed, pair.moving, landmarks=marks(pair, 8))
    assert match.is_ok
    assert match.details["pose"]["source"] == "landmarks"
    assert error(match.transform, pair) < 0.6
    assert match.landmarks is not None
    assert match.landmarks.residual.max() < 1.5
    assert not match.landmarks.is_contradicted.any()
    assert match.warnings == ()


def test_a_pose_that_is_given_goes_before_theirs() -> None:
    pair = make_pair(300)
    pose = match_spots(pair.fixed, pair.moving).transform.affine
    match = match_spots(pair.fixed, pair.moving, initial=pose, landmarks=marks(pair, 5))
    assert match.details["pose"]["source"] == "given"


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_pose_of_exact_landmarks_is_exact(ndim: int) -> None:
    fixed = scattered(200, ndim)
    turn = Rotation.from_rotvec([2.0, 0.3, 0.1]).as_matrix()[-ndim:, -ndim:]
    turn = np.linalg.svd(turn)[0] @ np.linalg.svd(turn)[2]
    truth = Affine(turn, np.full(ndim, 3.0))
    problem = make_problem(fixed, truth(fixed), np.zeros(200, dtype=bool))
    for rows in (np.arange(ndim), np.arange(20)):
        points = fixed[rows] + 0.2
        known = replace(problem, landmarks=Landmarks.of(points, truth(points)))
        found = landmark_pose(known)
        assert found is not None
        np.testing.assert_allclose(found.affine(fixed), truth(fixed), atol=1e-6)


def test_landmarks_on_a_line_give_no_pose() -> None:
    pair = make_pair(300)
    line = np.linspace(0, 1, 5)[:, None] * np.ptp(pair.fixed, axis=0) + pair.fixed.min(axis=0)
    for points in (line, line[:2], np.repeat(line[:1], 4, axis=0)):
        match = match_spots(pair.fixed, pair.moving, landmarks=(points, pair.true_map(points)))
        assert match.is_ok
        assert match.details["pose"]["source"] == "vote"


def test_spots_find_the_pose_where_landmarks_are_rough() -> None:
    """Clicked more than a spacing off: the pose is right, and most landmarks contradict it."""
    pair = make_pair(800)
    match = match_spots(pair.fixed, pair.moving, landmarks=marks(pair, 8, click=10.0))
    assert match.is_ok
    assert error(match.transform, pair) < 0.2
    assert match.landmarks is not None
    assert match.landmarks.is_contradicted.sum() >= 5


@pytest.mark.parametrize(("count", "weight"), [(800, 1.0), (800, 100.0), (2600, 100.0), (40, 1.0)])
def test_a_wrong_landmark_is_named(count: int, weight: float) -> None:
    """However heavy it is: on both sides of the size at which kriging is exact."""
    pair = make_pair(count, overlap=1.0 if count < 60 else 0.75)
    points, partners = marks(pair, 6, wrong={2: 40.0})
    trust = np.where(np.arange(6) == 2, weight, 1.0)
    match = match_spots(pair.fixed, pair.moving, landmarks=(points, partners, trust))
    assert match.is_ok
    assert match.landmarks is not None
    assert match.landmarks.is_contradicted.tolist() == [row == 2 for row in range(6)]
    assert match.landmarks.miss[2] == pytest.approx(40.0, abs=2.0)
    np.testing.assert_allclose(
        match.landmarks.residual,
        np.linalg.norm(match.transform(points) - partners, axis=1),
        atol=1e-9,
    )
    assert len(match.warnings) == 1
    assert "1 of 6 landmarks" in match.warnings[0]
    assert "number 2 at (" in match.warnings[0]
    found = match.correspondences
    assert (pair.partner[found.fixed_index] == found.moving_index).mean() > 0.97


def test_weight_is_influence() -> None:
    """A landmark off by a third of a spacing, on a smooth field: the heavier, the nearer."""
    fixed = scattered(500, 3)
    moving = bent(fixed, 0.3, 5.0) + np.random.default_rng(0).normal(0, 0.05, fixed.shape)
    place = fixed.mean(axis=0, keepdims=True)
    target = bent(np.concatenate([fixed, place]), 0.3, 5.0)[-1:] + [0.0, 0.0, 0.12]
    residuals = []
    for weight in (1.0, 10.0, 100.0):
        match = match_spots(fixed, moving, landmarks=(place, target, [weight]))
        assert match.landmarks is not None
        residuals.append(float(match.landmarks.residual[0]))
    assert np.all(np.diff(residuals) < 0)
    plain = match_spots(fixed, moving)
    weightless = match_spots(fixed, moving, landmarks=(place, target, [0.0]))
    np.testing.assert_array_equal(weightless.transform(fixed), plain.transform(fixed))
    assert weightless.landmarks is not None
    assert residuals[-1] < 0.5 * weightless.landmarks.residual[0]


def test_landmarks_lead_where_votes_do_not_reach() -> None:
    """A bump of eight spacings: the spots on it are lost but for the landmarks there."""
    fixed = scattered(1500, 3)
    moving = bent(fixed, 8.0, 4.0) + np.random.default_rng(0).normal(0, 0.02, fixed.shape)
    inside = np.flatnonzero(np.linalg.norm(moving - fixed, axis=1) > 4.0)
    rows = np.random.default_rng(1).permutation(inside)[:10]
    assert len(inside) > 30
    marked = bent(np.concatenate([fixed, fixed[rows] + 0.01]), 8.0, 4.0)[-10:]
    options: dict[str, Any] = {"field": "coherent", "initial": Affine.identity(3)}
    without = match_spots(fixed, moving, **options)
    match = match_spots(fixed, moving, landmarks=(fixed[rows] + 0.01, marked), **options)
    lost, left = (
        np.linalg.norm(m.transform(fixed[inside]) - moving[inside], axis=1)
        for m in (without, match)
    )
    assert np.median(lost) > 1.0
    assert np.median(left) < 0.3


def test_landmarks_alone_are_no_registration() -> None:
    """As many as there are spots, and all true: unrelated spots stay unrelated."""
    rng = np.random.default_rng(0)
    for count in (20, 700):
        fixed, moving = scattered(count, 3), scattered(count, 3, seed=1)
        points = rng.uniform(fixed.min(axis=0), fixed.max(axis=0), (count // 2, 3))
        match = match_spots(fixed, moving, landmarks=(points, points))
        assert match.status == "no registration"
        assert match.warnings == ()


@pytest.mark.parametrize("count", [20, 70])
def test_spots_that_are_landmarks_judge_nothing(count: int) -> None:
    """Every spot is given its partner, a wrong one: that all have one is the landmarks' word."""
    fixed, moving = scattered(count, 3), scattered(count, 3, seed=1)
    match = match_spots(fixed, moving, landmarks=(fixed, moving, np.full(count, 100.0)))
    assert not match.is_ok


def test_few_spots_are_told_with_their_landmarks() -> None:
    points = np.eye(3)
    match = match_spots(points, points, landmarks=(points, points))
    assert match.status == "few spots"
    assert match.landmarks is not None
    assert np.isnan(match.landmarks.residual).all()


def test_rows_and_units_change_nothing() -> None:
    pair = make_pair(400)
    points, partners = marks(pair, 6)
    match = match_spots(pair.fixed, pair.moving, landmarks=(points, partners))
    other = match_spots(pair.fixed * 0.5, pair.moving * 0.5, landmarks=(points / 2, partners / 2))
    np.testing.assert_array_equal(other.transform(pair.fixed / 2), match.transform(pair.fixed) / 2)
    assert match.landmarks is not None
    assert other.landmarks is not None
    np.testing.assert_array_equal(other.landmarks.residual, match.landmarks.residual / 2)
    turned = match_spots(pair.fixed, pair.moving, landmarks=(points[::-1], partners[::-1]))
    gap = turned.transform(pair.fixed) - match.transform(pair.fixed)
    assert np.abs(gap).max() < 1e-6


def test_the_spots_around_say_where_a_landmark_belongs() -> None:
    """An affine map of pairs predicts exactly; far from all pairs more is tolerated."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 10, (200, 3))
    affine = Affine(np.eye(3) + rng.normal(0, 0.1, (3, 3)), np.ones(3))
    pairs = Correspondences(
        fixed=fixed, moving=affine(fixed), fixed_index=np.arange(200),
        moving_index=np.arange(200), weight=np.ones(200), residual=np.zeros(200),
        held_out=np.zeros(200, dtype=bool), tile=np.zeros(200, dtype=np.int64),
    )  # fmt: skip
    at = np.array([[5.0, 5, 5], [5, 5, 5], [200, 5, 5]])
    told = Landmarks.of(at, affine(at) + [[0, 0, 0], [0, 0, 2], [0, 0, 2]])
    found = judge_landmarks(told, Transform(affine, None), pairs)
    np.testing.assert_allclose(found.residual, [0, 2, 2], atol=1e-9)
    np.testing.assert_allclose(found.miss[:2], [0, 2], atol=0.02)
    assert found.is_contradicted.tolist() == [False, True, False]
    assert "number 1 at (5, 5, 5) um" in warnings_of(found)[0]
    few = Correspondences(**{k: v[:3] for k, v in vars(pairs).items()})
    unknown = judge_landmarks(told, Transform(affine, None), few)
    assert np.isnan(unknown.miss).all()
    assert not unknown.is_contradicted.any()


def test_known_pairs_pull_the_drift() -> None:
    """Where no source has a partner, the field is theirs alone; the more so the heavier."""
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 12, (60, 3))
    target = source + 100.0
    lattice = Lattice.cover(source.min(axis=0), source.max(axis=0), 4.0)
    far = drift(source, source, target, lattice, Coherent(8.0, 1.0))
    assert not far.steps
    target = source + rng.normal(0, 0.05, source.shape)
    place, prior = source.mean(axis=0, keepdims=True), Coherent(8.0, 1.0)
    pulls = []
    for weight in (0.0, 0.1, 1.0, 10.0):
        known = Known(place, np.array([[0.0, 0.0, 0.5]]), np.array([weight]))
        found = drift(source, source, target, lattice, prior, known=known)
        pulls.append(float(lattice.field(found.solution.coefficients)(place)[0, 2]))
    plain = drift(source, source, target, lattice, prior)
    field = lattice.field(plain.solution.coefficients)
    assert pulls[0] == pytest.approx(float(field(place)[0, 2]), abs=1e-4)
    assert np.all(np.diff(pulls) > 0)


PRIORS = [Prior(8.0, 1e-3), Prior(2.0, 0.1), Prior(np.inf, 1e-2), Prior(2.0, 1e-2, 1.5)]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_divide_the_noise_of_a_pair(ndim: int, prior: Prior) -> None:
    """Leave-one-out residuals equal plain refits with unequal noise."""
    rng = np.random.default_rng(0)
    points, values = rng.uniform(0, 12, (40, ndim)), rng.normal(0, 1, (40, ndim))
    weight = 10 ** rng.uniform(-1, 1, 40)
    size = np.ones(40)
    if np.isfinite(prior.reach):
        size = Deviation.of(points, values, prior.reach)(points)
    gap = np.linalg.norm(points[:, None] - points, axis=2)
    system = prior.covariance(gap) * size[:, None] * size
    trend = np.column_stack([points, np.ones(40)])
    expected = np.empty_like(values)
    for row in range(40):
        others = np.arange(40) != row
        noisy = system[np.ix_(others, others)] + np.diag(prior.noise / weight[others])
        block = np.block([[noisy, trend[others]], [trend[others].T, np.zeros((ndim + 1,) * 2)]])
        right = np.concatenate([values[others], np.zeros((ndim + 1, ndim))])
        parts = np.linalg.solve(block, right)
        expected[row] = values[row] - np.concatenate([system[row, others], trend[row]]) @ parts
    found = leave_one_out(points, values, prior, weight)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    if np.isinf(prior.reach):
        lengths = residuals_of(points, values, prior.beta, (prior.noise,), weight=weight)[:, 0]
        np.testing.assert_allclose(lengths, np.linalg.norm(expected, axis=1), atol=1e-7)


def test_even_weights_change_the_noise_alone() -> None:
    rng = np.random.default_rng(1)
    points, values = rng.uniform(0, 12, (50, 3)), rng.normal(0, 1, (50, 3))
    one = LeaveOut.of(points, values, Prior(3.0, 0.1), np.full(50, 4.0))
    np.testing.assert_allclose(
        one.product, LeaveOut.of(points, values, Prior(3.0, 0.025)).product, atol=1e-10
    )


@pytest.mark.parametrize("count", [300, 2200])
def test_a_field_follows_a_pair_by_its_weight(count: int) -> None:
    """By the exact form and on a lattice; and of several at one place the heaviest counts."""
    fixed = scattered(count, 3)
    rng = np.random.default_rng(0)
    moving = bent(fixed, 0.5, 4.0) + rng.normal(0, 0.1, fixed.shape)
    off = moving.copy()
    off[0, 0] += 0.3
    gaps = []
    for weight in (0.05, 1.0, 20.0):
        trust = np.ones(count)
        trust[0] = weight
        fit = fit_kriging(fixed, off, weight=trust)
        assert fit.is_kept[0]
        gaps.append(abs(float((fit.transform(fixed[:1]) - off[:1])[0, 0])))
    assert gaps[0] > gaps[1] > gaps[2]
    twice = fit_kriging(
        np.concatenate([fixed, fixed[:1]]),
        np.concatenate([moving, off[:1]]),
        weight=np.concatenate([np.ones(count), [3.0]]),
    )
    assert not twice.is_kept[0]
    assert twice.is_kept[-1]
    ones = fit_kriging(fixed, moving, weight=np.ones(count))
    plain = fit_kriging(fixed, moving)
    np.testing.assert_allclose(ones.transform(fixed), plain.transform(fixed), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((np.eye(3),), "1 arrays"),
        ((np.eye(3), np.eye(3)[:2]), r"\(3, 3\) fixed and \(2, 3\) moving"),
        ((np.eye(3), np.eye(3), [1.0]), r"shape \(1,\) of the weights of 3 landmarks"),
        ((np.eye(3), np.eye(3), [1.0, -2.0, 1.0]), "Invalid weight -2.0 of landmark 1"),
        ((np.eye(3), np.eye(3), [1.0, np.nan, 1.0]), "Invalid weight nan of landmark 1"),
        ((np.eye(3), np.full((3, 3), np.nan)), "moving landmarks are not finite"),
        ((np.eye(3)[:, :2], np.eye(3)[:, :2]), "Landmarks have 2 axes, the points have 3"),
    ],
)
def test_wrong_landmarks_are_explained(given: Any, words: str) -> None:
    points = scattered(20, 3)
    with pytest.raises(InputError, match=words):
        match_spots(points, points, landmarks=given)


def test_no_landmarks_are_none() -> None:
    points = scattered(30, 3)
    match = match_spots(points, points, landmarks=(np.empty((0, 3)), np.empty((0, 3))))
    assert match.landmarks is None
    with pytest.raises(InputError, match="weights of shape"):
        fit_kriging(points, points, weight=np.zeros(30))


def test_an_engine_that_cannot_use_landmarks_refuses_them() -> None:
    check_given("cpd", {"landmarks": True})
    with pytest.raises(InputError, match="'other' cannot use landmarks"):
        check_given("other", {"landmarks": True})
