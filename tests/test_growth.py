"""Growth of a match into bent regions, and none where chance explains it."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import make_pair
from numpy.typing import NDArray

from tilereg.matching.growth import grow
from tilereg.matching.match import match_spots

Floats = NDArray[np.float64]


def scattered(count: int, ndim: int, seed: int = 0) -> Floats:
    """Spots whose mean distance of nearest neighbours is about one."""
    side = (count * 6.0) ** (1 / 3) if ndim == 3 else (count * 4.0) ** 0.5
    return np.random.default_rng(seed).uniform(0, side, (count, ndim))


def bent(points: Floats, amplitude: float, width: float) -> Floats:
    """A bump in the middle, along the first axis but one."""
    gap = points - points.mean(axis=0)
    push = np.zeros_like(points)
    push[:, -2] = amplitude * np.exp(-0.5 * (gap**2).sum(axis=1) / width**2)
    return points + push


@pytest.mark.parametrize("ndim", [2, 3])
def test_grows_into_a_bump(ndim: int) -> None:
    fixed = scattered(700, ndim)
    moving = bent(fixed, 2.0, {2: 7.0, 3: 3.5}[ndim])
    known = np.flatnonzero(np.linalg.norm(moving - fixed, axis=1) < 0.05)
    assert len(known) < 0.8 * len(fixed)
    growth = grow(fixed, fixed, moving, known, known)
    wrong = growth.fixed_rows != growth.moving_rows
    assert len(growth.fixed_rows) > 0.98 * len(fixed)
    assert wrong.mean() < 0.01
    assert growth.is_gain_over(len(known))


@pytest.mark.parametrize("ndim", [2, 3])
def test_chance_is_no_gain(ndim: int) -> None:
    """Half of either cloud has no partner; the rest is matched already."""
    common = scattered(1200, ndim)
    noise = np.random.default_rng(1).normal(0, 0.07, (800, ndim))
    fixed, moving = common[:800], np.concatenate([common[:400], common[800:]]) + noise
    known = np.arange(400)
    growth = grow(fixed, fixed, moving, known, known, sigma=0.07)
    assert not growth.is_gain_over(len(known))


def test_nothing_to_grow() -> None:
    fixed = scattered(100, 3)
    rows = np.arange(100)
    growth = grow(fixed, fixed, fixed, rows, rows)
    assert (growth.fixed_rows == rows).all()
    assert (growth.moving_rows == rows).all()
    few = grow(fixed, fixed, fixed, rows[:3], rows[:3])
    assert few.fixed_rows.tolist() == [0, 1, 2]
    assert not few.is_gain_over(3)


def test_pairs_that_contradict_their_neighbours_are_taken_back() -> None:
    fixed = scattered(400, 3)
    moving = bent(fixed, 1.5, 4.0)
    # Two pairs swapped that lie next to spots without a partner.
    first, second = np.argsort(np.linalg.norm(fixed[:395] - fixed[395], axis=1))[[0, 6]]
    rows = np.arange(395)
    theirs = rows.copy()
    theirs[[first, second]] = theirs[[second, first]]
    growth = grow(fixed, fixed, moving, rows, theirs)
    found = dict(zip(growth.fixed_rows.tolist(), growth.moving_rows.tolist(), strict=True))
    assert found.get(first) != second
    assert found.get(second) != first


def test_many_spots_without_a_partner_and_a_hole() -> None:
    """Of many spots only the region where hardly any is matched is looked at."""
    points = scattered(24_000, 3)
    shown = np.random.default_rng(2).uniform(size=(2, len(points))) < 0.6
    fixed, target = points[shown[0]], bent(points, 2.5, 4.0)
    moving = target[shown[1]]
    row_of = np.full(len(points), -1)
    row_of[shown[1]] = np.arange(shown[1].sum())
    partner = row_of[shown[0]]
    shift = np.linalg.norm(target - points, axis=1)[shown[0]]
    known = np.flatnonzero((partner >= 0) & (shift < 0.02))
    lost = np.flatnonzero((partner >= 0) & (shift > 0.5))
    assert len(fixed) - len(known) > 5000
    assert len(lost) > 50
    growth = grow(fixed, fixed, moving, known, partner[known])
    found = np.full(len(fixed), -1)
    found[growth.fixed_rows] = growth.moving_rows
    assert (found[lost] == partner[lost]).mean() > 0.7
    assert len(growth.fixed_rows) - len(known) < 1.5 * (partner[partner >= 0].size - len(known))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_narrow_bump_is_matched_from_nothing(seed: int) -> None:
    """Two spacings wide and a spacing high: more than the stiffness of the whole allows."""
    rng = np.random.default_rng(seed)
    fixed = rng.uniform(0, [32, 512, 512], (400, 3))
    moving = bent(fixed, 25.0, 50.0) + rng.normal(0, 0.03, fixed.shape)
    match = match_spots(fixed, moving)
    error = np.linalg.norm(match.transform(fixed) - moving, axis=1)
    assert match.is_ok
    assert np.median(error) < 0.3
    assert np.percentile(error, 90) < 1.5
    assert (error > 4).mean() < 0.05


def test_clouds_with_few_partners_stay_as_exact() -> None:
    pair = make_pair(800, overlap=0.4, seed=2)
    match = match_spots(pair.fixed, pair.moving)
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert match.is_ok
    assert np.median(error) < 0.6
