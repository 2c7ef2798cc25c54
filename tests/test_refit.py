"""The last fit: through all pairs, judged without those that are held out."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import make_pair, make_problem
from numpy.typing import NDArray
from test_growth import bent, scattered

from tilereg import InputError
from tilereg.kriging import fit_kriging
from tilereg.matching import match_spots
from tilereg.matching.refit import Refit, exchanged, fit_all, fit_judge, reassigned
from tilereg.transform import Transform

Floats = NDArray[np.float64]


def held_out(count: int) -> NDArray[np.bool_]:
    held = np.zeros(count, dtype=bool)
    held[::8] = True
    return held


@pytest.mark.parametrize("count", [400, 1400, 2200])
def test_held_out_pairs_change_the_map_and_not_its_judge(count: int) -> None:
    """Across the sizes at which pairs are sought anew, and fields are no longer exact."""
    fixed = scattered(count, 3)
    moving = bent(fixed, 0.3, 4.0)
    held = held_out(count)
    nudged = moving + held[:, None] * np.random.default_rng(0).normal(0, 0.02, moving.shape)
    found = []
    for targets in (moving, nudged):
        problem = make_problem(fixed, targets, held)
        judge = fit_judge(problem, Transform.identity(3), 0.15, must=True)
        assert judge is not None
        assert not held[judge.fixed_rows].any()
        final = fit_all(problem, judge.transform, 0.1)
        assert held[final.fixed_rows].mean() > 0.1
        assert len(final.fixed_rows) > 0.97 * count
        found.append((judge.transform(fixed), final.transform(fixed[held])))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3


def test_a_spline_of_few_pairs_is_no_spline_of_many() -> None:
    """Up to 2000 pairs a spline may fit best; of more there is none, and nothing must break."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 100, (2080, 3))
    unit = (fixed - 50) / 50
    moving = fixed + 2 * np.abs(unit[:, ::-1]) + rng.normal(0, 0.2, fixed.shape)
    match = match_spots(fixed, moving)
    assert match.is_ok
    error = np.linalg.norm(match.transform(fixed) - fixed - 2 * np.abs(unit[:, ::-1]), axis=1)
    assert np.median(error) < 0.2


def test_the_map_is_closer_than_its_judge() -> None:
    """Few spots on a narrow bump: those that judge are missed."""
    fixed = scattered(400, 3)
    moving = bent(fixed, 0.5, 1.6)
    problem = make_problem(fixed, moving, held_out(400))
    judge = fit_judge(problem, Transform.identity(3), 0.2, must=True)
    assert judge is not None
    final = fit_all(problem, judge.transform, 0.05)
    errors = [np.linalg.norm(m(fixed) - moving, axis=1) for m in (final.transform, judge.transform)]
    assert errors[0].max() < 0.3 * errors[1].max()


def test_a_map_that_held_out_spots_prefer_is_kept() -> None:
    """A wave as short as the spacing, which no pair tells of another."""
    fixed = scattered(800, 3)
    moving = fixed + 0.15 * np.sin(2.5 * fixed[:, ::-1])
    problem = make_problem(fixed, moving, held_out(800))

    class Wave(Transform):
        def __call__(self, points: Floats) -> Floats:
            return points + 0.15 * np.sin(2.5 * points[:, ::-1])

    wave = Wave(Transform.identity(3).affine)
    assert fit_judge(problem, wave, 0.1) is None
    assert fit_judge(problem, wave, 0.1, must=True) is not None
    # Too few to tell: they prefer nothing, and nothing is fitted.
    few = make_problem(fixed, moving, np.arange(800) < 5)
    assert fit_judge(few, wave, 0.1) is None


def test_a_large_match_that_grew_keeps_its_pairs() -> None:
    """A bump that the drift does not reach, in a cloud too large for the width to differ."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 100, (2600, 3))
    square = (((fixed - 50) / 50) ** 2).sum(axis=1, keepdims=True)
    moving = fixed + [0.0, 0.0, 6.0] * np.exp(-square / 0.05)
    moving += rng.normal(0, 0.01, moving.shape)
    match = match_spots(fixed, moving)
    assert match.details["extended"]
    assert match.details["field"] == "thin-plate"
    final, judge = (
        np.linalg.norm(m(fixed) - moving, axis=1) for m in (match.transform, match.judge)
    )
    assert final.max() <= 1.1 * judge.max()
    assert len(match.correspondences) > 2585


def test_a_match_that_grew_in_a_large_cloud_keeps_its_pairs() -> None:
    """More than a thousand spots, fewer pairs: the judged map alone finds some of them no more."""
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 100, (1200, 3))
    square = (((fixed - 50) / 50) ** 2).sum(axis=1, keepdims=True)
    moving = (fixed + [0.0, 0.0, 6.0] * np.exp(-square / 0.05))[:900]
    moving += rng.normal(0, 0.01, moving.shape)
    match = match_spots(fixed, moving)
    assert match.details["extended"]
    assert match.details["field"] == "kriging"
    final, judge = (
        np.linalg.norm(m(fixed[:900]) - moving, axis=1) for m in (match.transform, match.judge)
    )
    assert final.max() < judge.max()
    assert len(match.correspondences) > 895


def test_a_large_match_that_grew_is_fitted_by_kriging_where_that_is_better() -> None:
    """Held-out spots know: a field that is smooth everywhere needs no spline."""
    rng = np.random.default_rng(0)
    fixed = scattered(1500, 3)
    moving = fixed + 0.4 * np.sin(fixed[:, ::-1] / 6) + rng.normal(0, 0.02, fixed.shape)
    held = held_out(1500)
    rows = np.arange(1500), np.arange(1500)
    problem = make_problem(fixed, moving, held)
    rough = Transform.identity(3)
    fit = fit_judge(problem, rough, 0.3, pairs=rows, name="thin-plate")
    assert fit is not None
    assert fit.losses["kriging"] < 0.5 * fit.losses["thin-plate"]
    assert not held[fit.fixed_rows].any()
    again = fit_judge(problem, fit.transform, 0.03, pairs=rows)
    assert again is None
    final = fit_all(problem, fit.transform, 0.03, pairs=rows)
    assert len(final.fixed_rows) > 1480


def test_partners_that_are_exchanged_are_found() -> None:
    fixed = scattered(300, 3)
    moving = bent(fixed, 1.0, 4.0)
    fit = fit_kriging(fixed, moving)
    np.testing.assert_array_equal(exchanged(fixed, moving, fit), np.arange(300))
    gap = np.linalg.norm(fixed[:, None] - fixed, axis=2) + 99 * np.eye(300)
    one, two = np.unravel_index(np.where(gap > 0.5, gap, 99).argmin(), gap.shape)
    order = np.arange(300)
    order[[one, two]] = two, one
    swapped = moving[order]
    fit = fit_kriging(fixed, swapped)
    np.testing.assert_array_equal(order[exchanged(fixed, swapped, fit)], np.arange(300))


def test_noise_exchanges_nothing() -> None:
    fixed = scattered(300, 3)
    moving = fixed + np.random.default_rng(1).normal(0, 0.2, fixed.shape)
    order = exchanged(fixed, moving, fit_kriging(fixed, moving))
    np.testing.assert_array_equal(order, np.arange(300))


def test_a_chain_of_wrong_partners_is_assigned_anew() -> None:
    """Three in a row: each has the partner of the next, and the last has none."""
    fixed = scattered(200, 3)
    moving = bent(fixed, 1.0, 6.0) + np.random.default_rng(1).normal(0, 0.08, fixed.shape)
    middle = int(np.linalg.norm(fixed - fixed.mean(axis=0), axis=1).argmin())
    chain = np.linalg.norm(fixed - fixed[middle], axis=1).argsort()[:3]
    ours = np.setdiff1d(np.arange(200), chain[2])
    theirs = ours.copy()
    theirs[np.searchsorted(ours, chain[:2])] = chain[1:]
    problem = make_problem(fixed, moving, np.zeros(200, dtype=bool))
    fit = fit_kriging(fixed[ours], moving[theirs])
    wrong = Refit(fit.transform, 1.0, ours, theirs, kriging=fit)
    found = reassigned(problem, wrong)
    assert (found.fixed_rows == found.moving_rows).all()
    assert np.isin(chain, found.fixed_rows).all()
    right = reassigned(problem, found)
    np.testing.assert_array_equal(right.moving_rows, found.moving_rows)


@pytest.mark.parametrize("field", ["auto", "coherent", "kriging"])
def test_the_field_that_is_asked_for(field: str) -> None:
    pair = make_pair(600, seed=2)
    match = match_spots(pair.fixed, pair.moving, field=field)
    assert match.is_ok
    assert match.model == "field"
    name = match.details["field"]
    assert name == ("kriging" if field == "auto" else field)
    same = np.array_equal(match.transform(pair.fixed), match.judge(pair.fixed))
    assert same == (field == "coherent")
    error = np.linalg.norm(match.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.3


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(InputError, match="Invalid field 'rigid'"):
        match_spots(np.eye(3), np.eye(3), field="rigid")


def test_a_width_is_not_one_of_kriging() -> None:
    with pytest.raises(InputError, match="chooses its own width"):
        match_spots(np.eye(3), np.eye(3), field="kriging", beta=5.0)


def test_a_width_that_is_given_is_kept() -> None:
    pair = make_pair(600, seed=2)
    match = match_spots(pair.fixed, pair.moving, beta=60.0)
    assert match.details["field"] == "coherent"
    assert match.beta == pytest.approx(60.0)
