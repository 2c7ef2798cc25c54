"""The pose of clouds that are read in parts, from a box of fixed spots that has partners."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.matching.classes import arrange
from tilereg.matching.clouds import Unit, num_distinct
from tilereg.matching.coarse import Coarse, find_pose
from tilereg.matching.problem import FEWEST_PAIRS
from tilereg.matching.shelves import Shelves
from tilereg.matching.tiles import Tile, plan_tiles
from tilereg.sampling import farthest_points
from tilereg.spot_source import SpotPart, SpotSource
from tilereg.transform import Affine

__all__ = ["LocalPose", "find_local_pose", "middle_box"]

Floats = NDArray[np.float64]

# Spots of a box, how many boxes are tried, and how many of them among all moving spots.
_BOX_SPOTS, _BOXES, _WHOLE = 100_000, 6, 2
# How far around its place the partners of a box are sought, in spacings, and among how many.
_REACHES, _MOST_SOUGHT = (30.0, 120.0), 10_000_000
# Log10 of the probability of chance below which no other box is tried.
_CLEAR = -12.0


@dataclass(frozen=True, eq=False)
class LocalPose:
    """A pose, and where it was found.

    Parameters
    ----------
    found : Coarse
        In units of spacings; its evidence is paid for by the boxes that were tried.
    affine : Affine, micrometre
    centre : (D,) ndarray, micrometre
        Middle of the fixed spots that it was found with.
    """

    found: Coarse
    affine: Affine
    centre: Floats


def middle_box(source: SpotSource, sample: Floats) -> SpotPart:
    """Return the spots of a box around the middle of a cloud, not too many."""
    middle = np.median(sample, axis=0)[None]
    boxes = plan_tiles(sample, source.count, _BOX_SPOTS)
    own = next(box for box in boxes if box.owns(middle)[0])
    return source.read(np.array(own.low), np.array(own.high))


def find_local_pose(
    fixed: SpotSource,
    moving: SpotSource,
    samples: tuple[Floats, Floats],
    spacing: float,
    max_rotation: float,
) -> LocalPose:
    """Find the pose of some box of the fixed cloud in the moving one.

    Boxes are tried from where the clouds' extents overlap on, near their own places and where the
    middles of the clouds would be brought together first, then among all moving spots.

    Parameters
    ----------
    fixed, moving : SpotSource
    samples : pair of (S, D) ndarrays, micrometre
    spacing : float, micrometre
        Mean distance of neighbours.
    max_rotation : float, degrees

    Raises
    ------
    InputError
        If nothing is found and the moving cloud is too large to be searched as a whole.
    """
    ndim = len(fixed.bounds[0])
    nowhere = Affine.identity(ndim)
    best = LocalPose(Coarse(nowhere, 0.0, "none", 0), nowhere, np.zeros(ndim))
    num_searches = 0
    for box, low, high in _places(fixed, moving, samples, spacing):
        ours, theirs = fixed.read(np.array(box.low), np.array(box.high)), moving.read(low, high)
        if not (len(ours) and len(theirs)):
            continue
        num_searches += 1
        found, affine = _pose_among(ours, theirs, max_rotation)
        tried = best.found.num_tried + found.num_tried
        evidence = found.evidence + math.log10(num_searches)
        if evidence < best.found.evidence:
            centre = np.median(ours.positions, axis=0)
            best = LocalPose(replace(found, evidence=evidence), affine, centre)
        best = replace(best, found=replace(best.found, num_tried=tried))
        if best.found.evidence < _CLEAR:
            return best
    if not best.found.is_found and moving.count > _MOST_SOUGHT:
        raise InputError(
            f"No pose was found in {num_searches} places, and {moving.count:,} moving spots are "
            "too many to seek it among all. Give a first transform (initial, --initial)."
        )
    return best


def _places(
    fixed: SpotSource, moving: SpotSource, samples: tuple[Floats, Floats], spacing: float
) -> Iterator[tuple[Tile, Floats, Floats]]:
    """Yield boxes of fixed spots, and where their partners are sought: no place twice."""
    sample, others = samples
    shift = np.median(others, axis=0) - np.median(sample, axis=0)
    boxes = list(_boxes(fixed, moving, sample))
    everywhere = np.full(sample.shape[1], np.inf)
    is_whole = False
    for number, box in enumerate(boxes):
        low, high = box.within(*fixed.bounds)
        for reach in _REACHES:
            for offset in (np.zeros_like(shift), shift):
                ends = low + offset - reach * spacing, high + offset + reach * spacing
                share = ((others >= ends[0]) & (others < ends[1])).all(axis=1).mean()
                if 0 < share < 1 and share * moving.count <= _MOST_SOUGHT:
                    yield box, *ends
                is_whole = is_whole or share == 1
        if (is_whole or number < _WHOLE) and moving.count <= _MOST_SOUGHT:
            yield box, -everywhere, everywhere


def _boxes(fixed: SpotSource, moving: SpotSource, sample: Floats) -> Iterator[Tile]:
    """Yield boxes of fixed spots: where the extents overlap, the middle, some that lie apart."""
    boxes = plan_tiles(sample, fixed.count, _BOX_SPOTS)
    low = np.maximum(fixed.bounds[0], moving.bounds[0])
    high = np.minimum(fixed.bounds[1], moving.bounds[1])
    first = [np.median(sample, axis=0)]
    if (low <= high).all():
        inside = sample[((sample >= low) & (sample <= high)).all(axis=1)]
        first = [np.median(inside, axis=0), *first] if len(inside) else first
    middles = np.array([np.median(sample[box.owns(sample)], axis=0) for box in boxes])
    apart = middles[farthest_points(middles, min(_BOXES, len(middles)))]
    numbers = [
        next(box.number for box in boxes if box.owns(place[None])[0]) for place in (*first, *apart)
    ]
    for number in list(dict.fromkeys(numbers))[:_BOXES]:
        yield boxes[number]


def _pose_among(ours: SpotPart, theirs: SpotPart, max_rotation: float) -> tuple[Coarse, Affine]:
    """Return the pose of some spots among others, as found and in micrometre."""
    ndim = ours.positions.shape[1]
    labels = None
    if ours.spot_class is not None and theirs.spot_class is not None:
        labels = (ours.spot_class, theirs.spot_class)
    arranged = arrange(ours.positions, theirs.positions, labels, (ours.weight, theirs.weight))
    x, y = (part.positions[r] for part, r in zip((ours, theirs), arranged.rows, strict=True))
    if min(num_distinct(x), num_distinct(y)) < FEWEST_PAIRS:
        return Coarse(Affine.identity(ndim), 0.0, "none", 0), Affine.identity(ndim)
    unit = Unit.of(x, y)
    shelves = Shelves.of(arranged.numbers, unit.fixed(x), unit.moving(y))
    found = find_pose(unit.fixed(x), unit.moving(y), max_rotation=max_rotation, shelves=shelves)
    return found, unit.affine_out(found.affine)
