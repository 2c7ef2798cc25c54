"""Tilereg with default settings."""

from __future__ import annotations

from benchmarks.methods.scene import Recovered, Scene
from tilereg.config import Settings
from tilereg.matching import Match, match_spots
from tilereg.stages import fit_transform
from tilereg.transform import Transform


def tilereg(scene: Scene) -> Recovered:
    """Match the spots; the map is that of the matching itself."""
    match = match_spots(scene.fixed_spots, scene.moving_spots)
    return _recovered(match, match.transform)


def as_registered(scene: Scene) -> Recovered:
    """Match the spots, then fit the field as `tilereg register` does."""
    match = match_spots(scene.fixed_spots, scene.moving_spots)
    if not match.is_ok:
        return _recovered(match, match.transform)
    fit = fit_transform(match, scene.pair.grid, Settings())
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
