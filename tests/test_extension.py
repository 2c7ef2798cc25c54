"""Extension of a match: what is left over is assigned, and held-out spots decide."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import make_problem
from numpy.typing import NDArray
from test_growth import bent, scattered

from tilereg.matching import match_spots
from tilereg.matching.clouds import steps_aside
from tilereg.matching.extension import extend
from tilereg.matching.growth import assign_rest, grow
from tilereg.matching.pairing import mutual_neighbours, pair_sigma
from tilereg.transform import Affine, Transform

Floats = NDArray[np.float64]


def test_a_few_left_over_belong_together() -> None:
    """A bump that moves its spots by more than a spacing: nearest neighbours are wrong."""
    fixed = scattered(500, 3)
    moving = bent(fixed, 1.4, 1.5)
    shift = np.linalg.norm(moving - fixed, axis=1)
    known = np.flatnonzero(shift < 0.3)
    lost = np.flatnonzero(shift >= 0.3)
    assert len(lost) >= 8
    growth = assign_rest(fixed, fixed, moving, known, known)
    found = dict(zip(growth.fixed_rows.tolist(), growth.moving_rows.tolist(), strict=True))
    assert np.mean([found.get(row) == row for row in lost.tolist()]) > 0.8
    assert growth.is_gain_over(len(known))


def test_many_left_over_say_nothing() -> None:
    """Half of either cloud has no partner: an assignment finds as many moved aside."""
    common = scattered(1200, 3)
    fixed, moving = common[:800], np.concatenate([common[:400], common[800:]])
    known = np.arange(400)
    growth = assign_rest(fixed, fixed, moving, known, known)
    assert growth.by_chance > 50
    assert not growth.is_gain_over(len(known))


def test_nothing_is_left_over() -> None:
    fixed = scattered(50, 3)
    rows = np.arange(50)
    growth = assign_rest(fixed, fixed, fixed, rows, rows)
    assert (growth.fixed_rows == rows).all()
    assert growth.by_chance == 0


def held_out(count: int) -> NDArray[np.bool_]:
    held = np.zeros(count, dtype=bool)
    held[::8] = True
    return held


@pytest.mark.parametrize("ndim", [2, 3])
def test_reaches_what_the_map_does_not(ndim: int) -> None:
    fixed = scattered(500, ndim)
    moving = bent(fixed, 1.6, {2: 5.0, 3: 3.0}[ndim])
    held = held_out(len(fixed))
    before = np.linalg.norm(moving - fixed, axis=1)
    found = extend(make_problem(fixed, moving, held), Transform.identity(ndim), 0.02)
    assert found is not None
    after = np.linalg.norm(found.transform(fixed) - moving, axis=1)
    assert np.percentile(before, 95) > 0.5
    assert np.percentile(after, 95) < 0.05
    assert np.median(after[held]) < 0.01
    assert found.sigma < 0.05


def test_held_out_spots_refuse_what_is_no_better() -> None:
    """Noise alone is left: no map brings spots closer that were not seen."""
    fixed = scattered(500, 3)
    moving = fixed + np.random.default_rng(1).normal(0, 0.05, fixed.shape)
    problem = make_problem(fixed, moving, held_out(500))
    assert extend(problem, Transform.identity(3), 0.05) is None


def test_unrelated_clouds_stay_unrelated() -> None:
    """Nothing that is tried for them makes the held-out spots certain."""
    for seed in range(4):
        fixed, moving = scattered(300, 3, seed), scattered(300, 3, seed=seed + 50)
        match = match_spots(fixed, moving, initial=Affine.identity(3))
        assert match.status == "no registration"


def test_a_compact_region_without_partners_is_not_assigned() -> None:
    """Both clouds hold unrelated spots in one place; the rest is matched already."""
    fixed = scattered(600, 3)
    middle = fixed.mean(axis=0)
    is_lost = np.linalg.norm(fixed - middle, axis=1) < 3.0
    noise = np.random.default_rng(3).normal(0, 0.02, fixed.shape)
    moving = fixed + noise
    moving[is_lost] = middle + np.random.default_rng(4).uniform(-2.4, 2.4, (is_lost.sum(), 3))
    assert is_lost.sum() > 10
    found = extend(make_problem(fixed, moving, held_out(600)), Transform.identity(3), 0.02)
    if found is not None:
        error = np.linalg.norm(found.transform(fixed) - fixed, axis=1)
        assert np.percentile(error[~is_lost], 95) < 0.1
        assert np.median(error[is_lost]) < 0.3


def test_few_pairs_beside_the_held_out_ones() -> None:
    """A verdict, not an error, where hardly any pair is left to fit."""
    rng = np.random.default_rng(0)
    fixed = scattered(60, 3)
    moving = np.concatenate([fixed[[0, 7, 9, 20, 33, 41, 50]], rng.uniform(50, 60, (1, 3))])
    match = match_spots(fixed, moving, initial=Affine.identity(3))
    assert match.status in ("ok", "no registration", "few spots")


def test_held_out_spots_tell_nothing_about_others() -> None:
    """Those next to a lost region are given wrong partners: none of their neighbours follows."""
    fixed = scattered(500, 3)
    moving = bent(fixed, 1.2, 2.5)
    known = np.flatnonzero(np.linalg.norm(moving - fixed, axis=1) < 0.1)
    judges = np.zeros(500, dtype=bool)
    judges[known[::7]] = True
    theirs = known.copy()
    rows = judges[known]
    theirs[rows] = np.roll(theirs[rows], 1)
    growth = grow(fixed, fixed, moving, known, theirs, judges=judges)
    added = ~np.isin(growth.fixed_rows, known)
    assert added.sum() > 10
    assert (growth.fixed_rows == growth.moving_rows)[added].mean() > 0.9


def test_sigma_of_pairs_is_that_of_the_noise() -> None:
    fixed = scattered(2000, 3)
    moving = fixed + np.random.default_rng(2).normal(0, 0.04, fixed.shape)
    assert 0.036 < pair_sigma(fixed, moving, 0.1) < 0.044
    judges = held_out(2000)
    assert 0.03 < pair_sigma(fixed, moving, 0.1, judges) < 0.05
    assert pair_sigma(fixed[:2], moving[-2:] + 50, 0.1) == 0.1
    ours, theirs = mutual_neighbours(fixed, moving, 0.2)
    assert (ours == theirs).mean() > 0.99


def test_chance_is_no_noise() -> None:
    """Of all spots a tenth has a partner: what else is near is nearer to nothing."""
    rng = np.random.default_rng(0)
    fixed, strange = scattered(2000, 3), scattered(2000, 3, seed=1)
    moving = np.concatenate([fixed[:200] + rng.normal(0, 0.04, (200, 3)), strange[200:]])
    steps = steps_aside(moving)
    assert pair_sigma(fixed, moving, 0.05) > 0.05
    assert pair_sigma(fixed, moving, 0.05, aside=steps) == pytest.approx(0.04, rel=0.1)
