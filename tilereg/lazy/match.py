"""Match clouds tile by tile: no worker holds more spots than those of a tile and its halo.

The pose is found in the middle. From there tiles are matched ring by ring, each ring from where
those before lead, until no further tile can be: tiles of a ring do not wait for one another. One
field is fitted to the pairs of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.field import mean_spacing
from tilereg.lazy.execute import run_tasks
from tilereg.matching.classes import arrange
from tilereg.matching.clouds import Unit, num_distinct
from tilereg.matching.coarse import Coarse, find_pose
from tilereg.matching.mosaic import joined, predicted
from tilereg.matching.problem import FEWEST_PAIRS
from tilereg.matching.result import Match, nothing
from tilereg.matching.shelves import Shelves
from tilereg.matching.tiles import Tile, TileMatch, TileOptions, match_tile, plan_tiles
from tilereg.spot_source import SpotPart, SpotSource
from tilereg.transform import Affine, Transform

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["match_sources", "match_tile_of"]

Floats = NDArray[np.float64]

# In spacings: the halo, how far around their predicted places moving spots are read, and how far
# around the middle the pose is sought, one after the other.
_HALO, _MARGIN, _REACHES = 10.0, 6.0, (30.0, 120.0, math.inf)
# Spots of the middle that the pose is found with, and moving spots that it is sought among.
_POSE_SPOTS, _MOST_SOUGHT = 100_000, 10_000_000
# Judges of the whole, and of a tile: more tell nothing new, of fewer chance cannot be told.
_JUDGES, _JUDGES_A_TILE = 5000, 100
# Log10 of the probability of chance below which a pose is sought no further.
_CLEAR = -12.0
# How much farther from the middle the next ring reaches.
_FARTHER = 2.0
Progress = Callable[[TileMatch], None]


def match_sources(
    fixed: SpotSource,
    moving: SpotSource,
    *,
    tile_spots: int = 200_000,
    initial: Affine | None = None,
    max_rotation: float = 180.0,
    w: float = 0.9,
    held_out: float = 0.05,
    domain: tuple[Floats, Floats] | None = None,
    max_iterations: int = 100,
    seed: int = 0,
    client: Client | None = None,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> Match:
    """Match two clouds tile by tile.

    Parameters
    ----------
    fixed, moving : SpotSource
        Picklable where `client` is given.
    tile_spots : int
        About how many fixed spots a tile owns.
    initial : Affine, optional
        Pose to start from, fixed to moving, micrometre. Default: searched for in the middle.
    max_rotation, w, held_out, domain, max_iterations, seed
        As in `tilereg.match_spots`. Which spots are held out differs, since it follows from their
        rows.
    client : distributed.Client, optional
        Where tiles are matched. Default: threads of this process.
    num_workers : int, optional
        Threads of this process.
    progress : callable, optional
        Called in this process with each tile that is done.

    Returns
    -------
    Match
        `correspondences` know their tile; `details` ('tiles') has a status of every tile.

    Raises
    ------
    InputError
        If the number of axes differs, or the moving cloud is too large for a search.

    Notes
    -----
    A worker holds the spots of one tile with its halo, the moving spots around where they belong,
    and some 1.5 kB a spot while it matches. This process holds the sample and the middle of the
    fixed cloud, and the pairs: some 150 bytes each. Jumps between fields of view are not sought.
    """
    sample = fixed.sample()
    if sample.shape[1] != moving.sample().shape[1]:
        raise InputError(
            f"Fixed spots have {sample.shape[1]} axes, moving spots {moving.sample().shape[1]}. "
            "Both clouds must be 2D or both 3D."
        )
    tiles = plan_tiles(sample, fixed.count, tile_spots)
    box = fixed.bounds
    middle = _middle(fixed, sample)
    spacing = mean_spacing(middle.positions)
    told: dict[str, Any]
    if initial is not None:
        pose, told = initial, {"source": "given", "evidence": -math.inf, "tried": 0}
    else:
        found, pose = _pose_of(middle, fixed, moving, spacing, max_rotation)
        told = {"source": found.source, "evidence": found.evidence, "tried": found.num_tried}
        if not found.is_found:
            message = (
                f"The best of {found.num_tried} poses gives no more partners than chance does "
                f"(log10 of its probability {found.evidence:.1f})."
            )
            return nothing(sample[:0], message, status="no registration", spacing=spacing)
    low, high = box if domain is None else domain
    where = np.minimum(low, box[0]), np.maximum(high, box[1])
    least = _JUDGES_A_TILE / tile_spots
    options = TileOptions(
        halo=_HALO * spacing,
        held_out=min(held_out, max(_JUDGES / max(1, fixed.count), least)),
        seed=seed,
        w=w,
        max_iterations=max_iterations,
    )
    front = _Front(
        tiles=tiles,
        box=box,
        centre=np.median(middle.positions, axis=0) if initial is None else None,
    )
    matches: dict[int, TileMatch] = {}
    while chosen := front.next_ring(matches):
        start = Transform(pose)
        if any(match.is_ok for match in matches.values()):
            start = predicted(_in_order(matches), pose, where, spacing)
        task = partial(match_tile_of, fixed, moving, start, options, _MARGIN * spacing)
        for tile, match in run_tasks(task, iter(chosen), client=client, num_workers=num_workers):
            matches[tile.number] = match
            if progress is not None:
                progress(match)
    every = _in_order(matches)
    if not any(len(match) for match in every):
        message = f"None of {len(tiles)} tiles has more partners than chance gives."
        return nothing(sample[:0], message, status="no registration", spacing=spacing)
    return joined(every, where, moving.count, {"pose": told, "losses_um": {}, "iterations": []})


def match_tile_of(
    fixed: SpotSource,
    moving: SpotSource,
    start: Transform,
    options: TileOptions,
    margin: float,
    tile: Tile,
) -> TileMatch:
    """Read the spots of a tile and of where a map brings them, and match them."""
    ours = fixed.read(*tile.around(options.halo))
    if not len(ours):
        return match_tile(tile, ours, ours, start, options)
    places = start(ours.positions)
    theirs = moving.read(places.min(axis=0) - margin, places.max(axis=0) + margin)
    return match_tile(tile, ours, theirs, start, options)


@dataclass(eq=False, kw_only=True)
class _Front:
    """Which tiles can be matched next.

    Parameters
    ----------
    tiles : list of Tile
    box : pair of (D,) ndarrays, micrometre
        Of the fixed spots.
    centre : (D,) ndarray, micrometre, optional
        Where the pose was found; None where it is known everywhere.
    """

    tiles: list[Tile]
    box: tuple[Floats, Floats]
    centre: Floats | None
    tried: dict[int, int] = field(default_factory=dict)

    def next_ring(self, matches: dict[int, TileMatch]) -> list[Tile]:
        """Return the tiles to match: new ones, and lost ones beside new successes."""
        good = [match.tile for match in matches.values() if match.is_ok]
        if not matches and self.centre is not None:
            ring = [tile for tile in self.tiles if tile.owns(self.centre[None])[0]]
        elif not good:
            ring = [tile for tile in self.tiles if tile.number not in matches]
        else:
            reach = _FARTHER * max(self._distances(tile)[1] for tile in good)
            ring = [tile for tile in self.tiles if self._is_next(tile, good, reach, matches)]
        for tile in ring:
            self.tried[tile.number] = _num_touching(tile, good)
        return ring

    def _is_next(
        self, tile: Tile, good: list[Tile], reach: float, matches: dict[int, TileMatch]
    ) -> bool:
        """Whether a tile can be matched from where good ones lead."""
        if tile.number in matches:
            is_ok = matches[tile.number].is_ok
            return not is_ok and _num_touching(tile, good) > self.tried[tile.number]
        return _num_touching(tile, good) > 0 or self._distances(tile)[0] <= reach

    def _distances(self, tile: Tile) -> tuple[float, float]:
        """Return the least and the largest distance of a tile from where the pose was found."""
        if self.centre is None:
            return 0.0, 0.0
        low, high = tile.within(*self.box)
        gap = np.maximum(np.maximum(low - self.centre, self.centre - high), 0.0)
        far = np.maximum(np.abs(low - self.centre), np.abs(high - self.centre))
        return float(np.linalg.norm(gap)), float(np.linalg.norm(far))


def _num_touching(tile: Tile, others: list[Tile]) -> int:
    """Return how many other tiles a tile touches."""
    return sum(tile.gap(other) <= 0 for other in others)


def _in_order(matches: dict[int, TileMatch]) -> list[TileMatch]:
    """Return tiles by their numbers, whatever the order in which they were done."""
    return [matches[number] for number in sorted(matches)]


def _middle(fixed: SpotSource, sample: Floats) -> SpotPart:
    """Return the spots of a box around the middle of a cloud, not too many."""
    middle = np.median(sample, axis=0)[None]
    tiles = plan_tiles(sample, fixed.count, _POSE_SPOTS)
    own = next(tile for tile in tiles if tile.owns(middle)[0])
    return fixed.read(np.array(own.low), np.array(own.high))


def _pose_of(
    middle: SpotPart, fixed: SpotSource, moving: SpotSource, spacing: float, max_rotation: float
) -> tuple[Coarse, Affine]:
    """Return the pose of the middle of the fixed cloud, as found and in micrometre.

    Sought near its own place and near the middle of the moving cloud first.
    """
    low, high = middle.positions.min(axis=0), middle.positions.max(axis=0)
    shift = np.median(moving.sample(), axis=0) - np.median(fixed.sample(), axis=0)
    best = Coarse(Affine.identity(len(low)), 0.0, "none", 0)
    world = best.affine
    for reach in _REACHES:
        for offset in (np.zeros(len(low)), shift) if math.isfinite(reach) else (shift,):
            margin = reach * spacing
            among = moving.read(low + offset - margin, high + offset + margin)
            if len(among) > _MOST_SOUGHT:
                raise InputError(
                    f"No pose was found near the middle, and {len(among):,} moving spots are too "
                    "many to seek it among. Give a first transform (--initial)."
                )
            found, affine = _pose_among(middle, among, max_rotation)
            if found.evidence < best.evidence:
                best, world = found, affine
            if best.evidence < _CLEAR or len(among) == moving.count:
                return best, world
    return best, world


def _pose_among(ours: SpotPart, theirs: SpotPart, max_rotation: float) -> tuple[Coarse, Affine]:
    """Return the pose of some spots among others, as found and in micrometre."""
    ndim = ours.positions.shape[1]
    labels = None
    if ours.spot_class is not None and theirs.spot_class is not None and len(theirs):
        labels = (ours.spot_class, theirs.spot_class)
    arranged = arrange(ours.positions, theirs.positions, labels, (ours.weight, theirs.weight))
    x, y = (part.positions[r] for part, r in zip((ours, theirs), arranged.rows, strict=True))
    if min(num_distinct(x), num_distinct(y)) < FEWEST_PAIRS:
        return Coarse(Affine.identity(ndim), 0.0, "none", 0), Affine.identity(ndim)
    unit = Unit.of(x, y)
    shelves = Shelves.of(arranged.numbers, unit.fixed(x), unit.moving(y))
    found = find_pose(unit.fixed(x), unit.moving(y), max_rotation=max_rotation, shelves=shelves)
    return found, unit.affine_out(found.affine)
