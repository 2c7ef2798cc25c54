"""The two clouds as the matcher sees them: in an order and a unit of their own.

Both follow from the points alone, so neither the order of the rows of a table nor the unit of
the world changes what is found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.field import mean_spacing
from tilereg.points import canonical_order
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["Unit", "canonical_order", "crowding", "num_distinct", "steps_aside"]

Floats = NDArray[np.float64]

# How far spots are moved aside to see what chance gives, and along which axes of the cloud:
# those that are longer than some such steps, or than a share of the longest.
_ASIDE = 2.5
_WIDE, _ROUND = 4.0, 0.3
# Moving spots are denser than fixed ones from this ratio of distances on, and at most by this:
# of the sixth neighbours, of some spots.
_CROWDED, _MOST_CROWDED, _CROWD, _LOOKED_AT = 0.7, 0.2, 6, 2000
# Like spots are sparser than all, at most by this, and in small clouds by this share of the extent.
_MOST_SPARSE, _SHARE = 3.0, 0.1


def num_distinct(ordered: Floats) -> int:
    """Return the number of different places among points in canonical order."""
    return int((ordered[1:] != ordered[:-1]).any(axis=1).sum()) + min(1, len(ordered))


def steps_aside(cloud: Floats, times: float = 1.0) -> Floats:
    """Return steps (S, D) by which spots are moved aside to see what chance gives.

    They lead along the cloud, never out of it: a step off a plane of spots finds none, and would
    make chance look smaller than it is. Where partners are sought farther than usual they are as
    many `times` longer.
    """
    centred = cloud - cloud.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1].T
    extent = np.ptp(centred @ axes.T, axis=0)
    wide = extent >= min(_WIDE * _ASIDE, _ROUND * float(extent.max()))
    return times * np.concatenate([_ASIDE * axes[wide], -_ASIDE * axes[wide]])


def crowding(
    fixed: Floats, moving: Floats, on_shelves: tuple[Floats, Floats] | None = None
) -> float:
    """Return by how much nearer moving spots lie than fixed ones: 1 unless they clearly do.

    What is near for a spot without a partner depends on the denser cloud. Of neighbours further
    on: spots that were found twice have one next to them in any cloud.

    Parameters
    ----------
    fixed, moving : (N, D), (M, D) ndarrays
    on_shelves : pair of ndarrays, optional
        The same where spots of different classes are apart. Only like spots are in one another's
        way: where they lie farther apart than all fixed spots do, more than 1 is returned.
    """
    count = min(_CROWD, len(fixed) - 1, len(moving) - 1)
    if count < _CROWD:
        return 1.0
    ours = _usual_distance(fixed, count)
    if on_shelves is None:
        theirs = _usual_distance(moving, count)
    else:
        theirs = min(_usual_distance(cloud, count) for cloud in on_shelves)
    ratio = theirs / ours if ours > 0 else 1.0
    if ratio < _CROWDED:
        return max(ratio, _MOST_CROWDED)
    if on_shelves is None:
        return 1.0
    return max(1.0, min(ratio, _MOST_SPARSE, _SHARE * float(np.ptp(fixed, axis=0).max())))


def _usual_distance(cloud: Floats, count: int) -> float:
    """Return the median distance of points to their `count`-th neighbour, from some of them."""
    return float(np.median(cKDTree(cloud).query(_some(cloud), k=[count + 1])[0]))


def _some(cloud: Floats) -> Floats:
    """Return points spread over a cloud."""
    return cloud[:: -(-len(cloud) // _LOOKED_AT)]


@dataclass(frozen=True)
class Unit:
    """The change to coordinates in which the mean spacing is one and the clouds are centred.

    Parameters
    ----------
    scale : float, micrometre
        Mean distance of nearest neighbours of the fixed cloud.
    fixed_centre, moving_centre : (D,) ndarray, micrometre
        Means of the clouds.
    """

    scale: float
    fixed_centre: Floats
    moving_centre: Floats

    @classmethod
    def of(cls, fixed: Floats, moving: Floats) -> Unit:
        """Take the unit from the clouds."""
        return cls(mean_spacing(fixed), fixed.mean(axis=0), moving.mean(axis=0))

    def fixed(self, points: Floats) -> Floats:
        """Change fixed points."""
        return (points - self.fixed_centre) / self.scale

    def moving(self, points: Floats) -> Floats:
        """Change moving points."""
        return (points - self.moving_centre) / self.scale

    def place_out(self, image: str, axis: int, place: float) -> float:
        """Change a position along an axis of the fixed or the moving image to micrometre."""
        centre = self.fixed_centre if image == "fixed" else self.moving_centre
        return float(self.scale * place + centre[axis])

    def affine_in(self, affine: Affine) -> Affine:
        """Change an affine map from micrometre."""
        offset = affine(self.fixed_centre) - self.moving_centre
        return Affine(affine.matrix, offset / self.scale)

    def affine_out(self, affine: Affine) -> Affine:
        """Change an affine map to micrometre."""
        offset = self.scale * affine.offset + self.moving_centre
        return Affine(affine.matrix, offset - affine.matrix @ self.fixed_centre)

    def transform_out(self, affine: Affine, field: DisplacementField | None) -> Transform:
        """Change a map to micrometre."""
        if field is None:
            return Transform(self.affine_out(affine))
        return Transform(
            self.affine_out(affine),
            DisplacementField(
                field.coefficients * self.scale,
                field.origin * self.scale + self.fixed_centre,
                field.spacing * self.scale,
            ),
        )
