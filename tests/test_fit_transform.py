"""Which field is used: the one that held-out pairs prefer, or the one that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from clouds import make_pair
from numpy.typing import NDArray

from tilereg.config import Settings
from tilereg.grid import Grid
from tilereg.matching import Match, match_spots
from tilereg.stages import fit_transform

GRID = Grid(shape=(120, 120, 120))


@pytest.fixture(scope="module")
def match() -> Match:
    pair = make_pair(500, overlap=0.8, seed=1)
    found = match_spots(pair.fixed, pair.moving)
    assert found.is_ok
    assert found.model == "field"
    return found


def held_out_rms(match: Match, residual: NDArray[np.float64]) -> float:
    return float(np.sqrt((residual[match.correspondences.held_out] ** 2).mean()))


def test_auto_takes_what_held_out_pairs_prefer(match: Match) -> None:
    fit = fit_transform(match, GRID, Settings())
    losses = fit.description["held_out_rms_um"]
    assert set(losses) == {"coherent", "kriging"}
    assert fit.description["field"] == min(losses, key=losses.get)
    assert held_out_rms(match, fit.matches.residual) == pytest.approx(min(losses.values()))


@pytest.mark.parametrize("model", ["coherent", "kriging", "thin-plate"])
def test_a_model_that_is_asked_for_is_used(match: Match, model: str) -> None:
    fit = fit_transform(match, GRID, Settings().with_overrides([f"field.model={model}"]))
    assert fit.description["field"] == model
    assert set(fit.description["held_out_rms_um"]) == {model}


def test_a_width_that_is_asked_for_is_kept(match: Match) -> None:
    fit = fit_transform(match, GRID, Settings().with_overrides(["match.beta=40"]))
    assert fit.description["field"] == "coherent"
    assert fit.transform is match.transform


def test_an_extended_match_keeps_its_field() -> None:
    fixed = np.random.default_rng(0).uniform(0, 100, (500, 3))
    gap = fixed - 50
    moving = fixed + 8 * np.exp(-0.5 * (gap**2).sum(axis=1, keepdims=True) / 15**2)
    match = match_spots(fixed, moving)
    assert match.details["extended"]
    fit = fit_transform(match, GRID, Settings())
    assert fit.description["field"] == "kriging"
    assert fit.transform is match.transform
    spline = fit_transform(match, GRID, Settings().with_overrides(["field.model=thin-plate"]))
    assert spline.description["field"] == "thin-plate"


def test_without_held_out_pairs_nothing_is_compared() -> None:
    pair = make_pair(500, overlap=0.8, seed=1)
    match = match_spots(pair.fixed, pair.moving, held_out=0.0)
    fit = fit_transform(match, GRID, Settings())
    assert fit.description["field"] == "coherent"
    assert fit.description["held_out_rms_um"] == {}
