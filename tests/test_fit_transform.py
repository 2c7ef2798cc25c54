"""Which field is used: that of the matching, or the one that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import Pair, make_pair

from tilereg.config import Settings
from tilereg.grid import Grid
from tilereg.matching import Match, match_spots
from tilereg.stages import fit_transform, match_clouds

GRID = Grid(shape=(120, 120, 120))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(500, overlap=0.8, seed=1)


@pytest.fixture(scope="module")
def match(pair: Pair) -> Match:
    found = match_spots(pair.fixed, pair.moving)
    assert found.is_ok
    assert found.model == "field"
    return found


def test_auto_takes_the_field_of_the_matching(match: Match) -> None:
    fit = fit_transform(match, GRID, Settings())
    assert fit.transform is match.transform
    assert fit.judge is match.judge
    assert fit.description["field"] == match.details["field"] == "kriging"
    assert set(fit.description["held_out_rms_um"]) == {"coherent", "kriging"}


@pytest.mark.parametrize("model", ["coherent", "kriging"])
def test_the_matching_is_told_which_field(model: str) -> None:
    pair = make_pair(300, overlap=0.8, seed=1)
    settings = Settings().with_overrides([f"field.model={model}"])
    clouds = pair.fixed, pair.moving
    found = match_clouds(*clouds, settings, None, None)
    fit = fit_transform(found, GRID, settings)
    assert fit.description["field"] == model
    assert fit.transform is found.transform


@pytest.mark.parametrize("override", ["field.model=thin-plate", "field.smoothing=10"])
def test_a_thin_plate_spline_is_fitted_to_all_and_judged_without_some(
    pair: Pair, match: Match, override: str
) -> None:
    fit = fit_transform(match, GRID, Settings().with_overrides([override]))
    assert fit.description["field"] == "thin-plate"
    pairs = match.correspondences
    held = pairs.held_out
    assert held.any()
    residual = np.linalg.norm(fit.judge(pairs.fixed[held]) - pairs.moving[held], axis=1)
    np.testing.assert_allclose(fit.matches.residual[held], residual)
    rms = fit.description["held_out_rms_um"]
    assert rms == {"thin-plate": pytest.approx(np.sqrt((residual**2).mean()))}
    moved = fit.transform(pairs.fixed[held])
    assert not np.array_equal(moved, fit.judge(pairs.fixed[held]))
    error = np.linalg.norm(fit.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.5


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        (["field.model=radial", "field.kernel=cubic"], {"kernel": "cubic", "degree": 1}),
        (["field.model=radial", "field.control_points=50"], {"control_points": 50}),
        (["field.model=polynomial", "field.degree=3"], {"degree": 3}),
    ],
)
def test_other_models_are_told_with_their_parameters(
    pair: Pair, match: Match, overrides: list[str], parameters: dict[str, object]
) -> None:
    settings = Settings().with_overrides(overrides)
    fit = fit_transform(match, GRID, settings)
    told = fit.description
    assert told["field"] == settings.field.model
    assert parameters.items() <= told["parameters"].items()
    assert told["held_out_rms_um"][settings.field.model] < 1.5
    assert 0 < told["lattice_error_um"] < 0.1
    assert bool(told["cross_validation_um"]) == (settings.field.model == "radial")
    error = np.linalg.norm(fit.transform(pair.fixed) - pair.true_map(pair.fixed), axis=1)
    assert np.median(error) < 0.3
    assert not np.array_equal(fit.transform(pair.fixed), fit.judge(pair.fixed))


def test_an_extended_match_is_kriging() -> None:
    fixed = np.random.default_rng(0).uniform(0, 100, (500, 3))
    gap = fixed - 50
    moving = fixed + 8 * np.exp(-0.5 * (gap**2).sum(axis=1, keepdims=True) / 15**2)
    match = match_spots(fixed, moving)
    assert match.details["extended"]
    assert fit_transform(match, GRID, Settings()).description["field"] == "kriging"
    assert not match_spots(fixed, moving, field="coherent").details["extended"]


def test_without_held_out_pairs_nothing_is_compared(pair: Pair) -> None:
    match = match_spots(pair.fixed, pair.moving, held_out=0.0)
    fit = fit_transform(match, GRID, Settings())
    assert fit.description["field"] == "coherent"
    assert fit.description["held_out_rms_um"] == {}


@pytest.mark.parametrize("model", ["kriging", "radial", "polynomial"])
def test_a_rigid_map_has_no_field_to_be_asked_for(model: str) -> None:
    fixed = np.random.default_rng(0).uniform(0, 100, (300, 3))
    match = match_spots(fixed, fixed + [3.0, 4.0, 5.0])
    fit = fit_transform(match, GRID, Settings().with_overrides([f"field.model={model}"]))
    assert fit.description["field"] == match.model != "field"
    assert f"no {model} field was fitted" in fit.warnings[0]
