"""Confidence in single spots: it multiplies what they say, and zero silences them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import make_pair, make_problem
from numpy.typing import NDArray
from test_growth import bent, scattered

from tilereg import InputError, match_spots, steps
from tilereg.config import Settings
from tilereg.io.tables import read_matches, write_spots
from tilereg.lattice import Lattice
from tilereg.matching import Match
from tilereg.matching.classes import arrange
from tilereg.matching.drift import drift
from tilereg.matching.engines import check_given
from tilereg.matching.refit import fit_all, fit_judge
from tilereg.points import Landmarks, Spots
from tilereg.quality import describe_residuals
from tilereg.smoothing import Coherent
from tilereg.transform import Transform

Floats = NDArray[np.float64]


def check_same(match: Match, other: Match, points: Floats) -> None:
    np.testing.assert_array_equal(match.transform(points), other.transform(points))
    np.testing.assert_array_equal(match.judge(points), other.judge(points))
    assert match.evidence == other.evidence


@pytest.mark.parametrize("field", ["auto", "coherent"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_of_one_change_nothing(ndim: int, field: str) -> None:
    pair = make_pair(300, ndim=ndim)
    plain = match_spots(pair.fixed, pair.moving, field=field)
    weighted = match_spots(
        pair.fixed, pair.moving, field=field, fixed_weight=np.ones(300), moving_weight=[1] * 300
    )
    check_same(weighted, plain, pair.fixed)
    np.testing.assert_array_equal(weighted.correspondences.weight, plain.correspondences.weight)


@pytest.mark.parametrize("field", ["auto", "coherent"])
def test_a_spot_of_weight_zero_takes_part_in_nothing(field: str) -> None:
    """The match is that of the other spots to the last bit; its own residual is told."""
    pair = make_pair(400)
    rng = np.random.default_rng(0)
    idle = np.sort(rng.permutation(400)[:60])
    weight = np.ones(400)
    weight[idle] = 0
    # A third of them is misplaced: nobody is misled.
    fixed = pair.fixed.copy()
    fixed[idle[::3]] += rng.uniform(-60, 60, (20, 3))
    match = match_spots(fixed, pair.moving, field=field, fixed_weight=weight)
    less = match_spots(fixed[weight > 0], pair.moving, field=field)
    check_same(match, less, fixed)
    pairs = match.correspondences
    is_idle = np.isin(pairs.fixed_index, idle)
    assert (pairs.weight == 0).tolist() == is_idle.tolist()
    rows = np.flatnonzero(weight > 0)
    np.testing.assert_array_equal(
        rows[less.correspondences.fixed_index], pairs.fixed_index[~is_idle]
    )
    # Those that are where they belong have their partners.
    right = idle[~np.isin(idle, idle[::3]) & (pair.partner[idle] >= 0)]
    told = dict(zip(pairs.fixed_index.tolist(), pairs.moving_index.tolist(), strict=True))
    assert np.mean([told.get(row) == pair.partner[row] for row in right]) > 0.9
    assert (np.diff(pairs.fixed_index) > 0).all()
    assert len(np.unique(pairs.moving_index)) == len(pairs)
    gap = np.linalg.norm(match.transform(pairs.fixed) - pairs.moving, axis=1)
    np.testing.assert_allclose(pairs.residual[is_idle], gap[is_idle])


def test_idle_spots_are_like_their_partners() -> None:
    pair = make_pair(400)
    theirs = np.arange(400) % 3
    ours = np.where(pair.partner >= 0, theirs[pair.partner], 0)
    weight = np.ones(400)
    idle = np.arange(0, 400, 5)
    weight[idle] = 0
    swapped = ours.copy()
    swapped[idle] = (ours[idle] + 1) % 3
    for classes, least, most in ((ours, 0.5, 1.0), (swapped, 0.0, 0.1)):
        match = match_spots(
            pair.fixed, pair.moving, fixed_class=classes, moving_class=theirs, fixed_weight=weight
        )
        found = match.correspondences
        assert (classes[found.fixed_index] == theirs[found.moving_index]).all()
        assert least <= np.isin(idle, found.fixed_index).mean() <= most


def test_a_moving_spot_of_weight_zero_takes_part_in_nothing() -> None:
    pair = make_pair(300)
    weight = np.ones(300)
    weight[::4] = 0
    match = match_spots(pair.fixed, pair.moving, moving_weight=weight)
    check_same(match, match_spots(pair.fixed, pair.moving[weight > 0]), pair.fixed)
    assert (weight[match.correspondences.moving_index] > 0).all()


@pytest.mark.parametrize("count", [300, 1100, 2300])
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_weight_is_influence(side: str, count: int) -> None:
    """Neighbouring spots that are all a little off: the field follows them by their weight.

    Across the sizes at which pairs are sought anew, and fields are no longer exact.
    """
    fixed = scattered(count, 3)
    moving = bent(fixed, 0.5, 5.0) + np.random.default_rng(0).normal(0, 0.05, fixed.shape)
    middle = fixed.mean(axis=0)
    off = np.argsort(np.linalg.norm(fixed - middle, axis=1))[:5]
    target = moving.copy()
    target[off, 2] += 0.15
    held = np.zeros(count, dtype=bool)
    held[::8] = True
    held[off] = False
    shifts = []
    for weight in (1.0, 0.3, 0.05):
        trust = np.ones(count)
        trust[off] = weight
        problem = make_problem(fixed, target, held, **{f"{side}_weight": trust})
        judge = fit_judge(problem, Transform.identity(3), 0.2, must=True)
        assert judge is not None
        final = fit_all(problem, judge.transform, 0.1)
        shifts.append(
            [float((m.transform(fixed[off]) - moving[off])[:, 2].mean()) for m in (judge, final)]
        )
    for one in np.array(shifts).T:
        assert one[0] > one[1] > one[2]


def test_the_drift_follows_spots_by_their_weight() -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 12, (200, 3))
    target = source + rng.normal(0, 0.05, source.shape)
    off = np.linalg.norm(source - 6, axis=1) < 2.5
    target[off, 2] += 0.1
    assert off.sum() > 4
    lattice = Lattice.cover(source.min(axis=0), source.max(axis=0), 2.0)
    prior = Coherent(4.0, 0.1)
    for place in (0, 1):
        shifts = []
        for weight in (1.0, 0.2, 0.02):
            trust: list[Any] = [None, None]
            trust[place] = np.where(off, weight, 1.0)
            found = drift(source, source, target, lattice, prior, trust=(trust[0], trust[1]))
            moved = lattice.field(found.solution.coefficients)(source[off])
            shifts.append(float(moved[:, 2].mean()))
        assert shifts[0] > shifts[1] > shifts[2]
    ones = drift(source, source, target, lattice, prior, trust=(np.ones(200), np.ones(200)))
    plain = drift(source, source, target, lattice, prior)
    np.testing.assert_allclose(ones.partner, plain.partner, atol=1e-9)
    assert ones.w == pytest.approx(plain.w)


@pytest.mark.parametrize("model", ["rigid", "affine"])
def test_simple_maps_follow_spots_by_their_weight(model: str) -> None:
    """Spots on one side are all shifted: the lighter they are, the less the map is theirs."""
    rng = np.random.default_rng(1)
    fixed = scattered(40, 3)
    moving = fixed + rng.normal(0, 0.02, fixed.shape)
    off = fixed[:, 0] > np.quantile(fixed[:, 0], 0.6)
    moving[off, 2] += 0.08
    gaps = []
    for weight in (1.0, 0.1, 0.01):
        match = match_spots(fixed, moving, fixed_weight=np.where(off, weight, 1.0))
        assert match.is_ok
        gap = match.transform(fixed[~off]) - moving[~off]
        gaps.append(float(np.linalg.norm(gap, axis=1).mean()))
    assert gaps[0] > gaps[-1]


def test_weights_are_in_the_pairs() -> None:
    pair = make_pair(300)
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(0.2, 1, 300), rng.uniform(0.2, 1, 300)
    match = match_spots(pair.fixed, pair.moving, fixed_weight=ours, moving_weight=theirs)
    assert match.is_ok
    found = match.correspondences
    most = ours[found.fixed_index] * theirs[found.moving_index]
    assert (found.weight <= most + 1e-12).all()
    assert np.corrcoef(found.weight, most)[0, 1] > 0.9


def test_rows_change_nothing() -> None:
    """Not even where spots at one place differ in weight."""
    pair = make_pair(200)
    fixed = np.concatenate([pair.fixed, pair.fixed[:20]])
    weight = np.random.default_rng(0).uniform(0, 1, 220)
    match = match_spots(fixed, pair.moving, fixed_weight=weight)
    rows = np.random.default_rng(1).permutation(220)
    other = match_spots(fixed[rows], pair.moving, fixed_weight=weight[rows])
    np.testing.assert_array_equal(match.transform(fixed), other.transform(fixed))
    names = np.full(220, "a")
    arranged = arrange(fixed[rows], pair.moving, (names, np.full(200, "a")), (weight[rows], None))
    assert arranged.weights[0] is not None
    np.testing.assert_array_equal(
        fixed[rows][arranged.rows[0]], fixed[arrange(fixed, pair.moving, None).rows[0]]
    )


def test_weights_beside_landmarks() -> None:
    pair = make_pair(400)
    points = pair.fixed[pair.partner >= 0][:6] + 0.5
    weight = np.where(np.arange(400) % 3 == 0, 0.3, 1.0)
    match = match_spots(
        pair.fixed,
        pair.moving,
        fixed_weight=weight,
        landmarks=Landmarks.of(points, pair.true_map(points)),
    )
    assert match.is_ok
    assert match.landmarks is not None
    assert match.landmarks.residual.max() < 0.5


def test_pairs_of_weight_zero_count_for_nothing(tmp_path: Path) -> None:
    pair = make_pair(400)
    weight = np.ones(400)
    weight[::5] = 0
    for name, cloud, trust in (("f", pair.fixed, weight), ("m", pair.moving, None)):
        write_spots(tmp_path / f"{name}.parquet", Spots.at(cloud, weight=trust))
    chosen = Settings().with_overrides(
        ["spots.columns=weight=weight", "spots.moving_columns=z=z,y=y,x=x"]
    )
    tables = tmp_path / "f.parquet", tmp_path / "m.parquet"
    found = steps.match(*tables, tmp_path / "out", settings=chosen)
    written = read_matches(tmp_path / "out" / "matches.parquet")
    idle = written.weight == 0
    assert idle.sum() > 30
    qc = json.loads((tmp_path / "out" / "qc.json").read_text())
    assert qc["matches"]["pairs"] == (~idle).sum()
    assert qc["residual"]["fitted"]["count"] == (~idle & ~written.held_out).sum()
    bad = found.correspondences
    spots = Spots.at(pair.fixed), Spots.at(pair.moving)
    none = describe_residuals(bad.take(idle), found.transform, found.judge, *spots, np.ones(3))
    assert none["fitted"]["count"] == none["held_out"]["count"] == 0


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ([1.0, 0.5], r"shape \(2,\) of the fixed weights"),
        ([1.0, 1.5, 0.0], "Invalid weight 1.5 of fixed spot 1"),
        ([1.0, -0.1, 0.0], "Invalid weight -0.1 of fixed spot 1"),
        ([1.0, 0.0, np.nan], "Invalid weight nan of fixed spot 2"),
    ],
)
def test_wrong_weights_are_explained(weight: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        match_spots(np.eye(3), np.eye(3), fixed_weight=weight)


def test_no_spot_is_believed() -> None:
    match = match_spots(np.eye(3), np.eye(3), fixed_weight=np.zeros(3))
    assert match.status == "few spots"
    assert "0 fixed and 3 moving" in match.message


def test_an_engine_that_cannot_use_weights_refuses_them() -> None:
    check_given("cpd", {"spot weights": True})
    points = scattered(20, 3)
    with pytest.raises(InputError, match="'icp' cannot use spot weights"):
        match_spots(points, points, method="icp", moving_weight=np.full(20, 0.5))
