"""Tilereg with default settings."""

from __future__ import annotations

from benchmarks.methods.scene import Recovered, Scene
from tilereg.config import Settings
from tilereg.matching import Match
from tilereg.stages import fit_transform, match_clouds
from tilereg.transform import Transform


def tilereg(scene: Scene) -> Recovered:
    """Match the spots and fit the field as `tilereg register` does."""
    settings, grid = Settings(), scene.pair.grid
    match = match_clouds(scene.fixed_spots, scene.moving_spots, settings, None, grid)
    if not match.is_ok:
        return _recovered(match, match.transform)
    fit = fit_transform(match, grid, settings)
    return _recovered(match, fit.transform, field=fit.description["field"])


def _recovered(match: Match, transform: Transform, **details: str) -> Recovered:
    """Return the result; without a registration nothing is moved, as the user is told."""
    return Recovered(
        map=transform if match.is_ok else lambda points: points,
        status=match.status,
        details={
            "pairs": len(match.correspondences),
            "model": match.model,
            "beta_spacings": match.beta / match.spacing,
            "w": match.w,
            "message": match.message,
            **details,
        },
    )
