"""Match clouds tile by tile: no worker holds more spots than those of a tile and its halo.

The pose is found in some box of them. From there tiles are matched ring by ring, each ring from
where those before lead, until no further tile can be: tiles of a ring do not wait for one another.
One field is fitted to the pairs of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError
from tilereg.field import mean_spacing
from tilereg.lazy.execute import run_tasks
from tilereg.matching.checking import check_axes, check_held_out, check_numbers, check_weight
from tilereg.matching.classes import check_classes
from tilereg.matching.front import Front
from tilereg.matching.local_pose import find_local_pose, middle_box
from tilereg.matching.mosaic import joined, predicted
from tilereg.matching.result import Match, nothing
from tilereg.matching.tiles import Tile, TileMatch, TileOptions, match_tile, plan_tiles
from tilereg.spot_source import SpotPart, SpotSource
from tilereg.transform import Affine, Transform

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["match_sources", "match_tile_of"]

Floats = NDArray[np.float64]

# In spacings: the halo, and how far around their predicted places moving spots are read.
_HALO, _MARGIN = 10.0, 6.0
# Judges of the whole, and of a tile: more tell nothing new, of fewer chance cannot be told.
_JUDGES, _JUDGES_A_TILE = 5000, 100
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
        Pose to start from, fixed to moving, micrometre. Default: searched for.
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
        If the clouds differ in their axes or kinds of classes, a setting is out of its range, or
        the moving cloud is too large for a search.

    Notes
    -----
    A worker holds the spots of one tile with its halo, the moving spots around where they belong,
    and some 1.5 kB a spot while it matches. This process holds samples, a box of the fixed cloud
    and what of the moving one its partners are sought among, then the pairs: some 150 bytes each,
    and the equations of the field. Jumps between fields of view are not sought.
    """
    ours, theirs = fixed.sample(), moving.sample()
    _check(ours, theirs, initial, (max_rotation, w, max_iterations), held_out, seed)
    sample = ours.positions
    if not (fixed.count and moving.count):
        message = f"{fixed.count} fixed and {moving.count} moving spots are too few to match."
        return nothing(sample[:0], message)
    tiles = plan_tiles(sample, fixed.count, tile_spots)
    box = fixed.bounds
    spacing = mean_spacing(middle_box(fixed, sample).positions)
    told: dict[str, Any] = {"source": "given", "evidence": -math.inf, "tried": 0}
    pose, centre = initial, None
    if pose is None:
        local = find_local_pose(fixed, moving, (sample, theirs.positions), spacing, max_rotation)
        found, pose, centre = local.found, local.affine, local.centre
        told = {"source": found.source, "evidence": found.evidence, "tried": found.num_tried}
        if not found.is_found:
            message = (
                f"The best of {found.num_tried} poses gives no more partners than chance does "
                f"(log10 of its probability {found.evidence:.1f})."
            )
            return nothing(sample[:0], message, status="no registration", spacing=spacing)
    # Nodes far from all spots would hold nothing.
    where = box if domain is None else _within(domain, box, _HALO * spacing)
    least = _JUDGES_A_TILE / tile_spots
    options = TileOptions(
        halo=_HALO * spacing,
        held_out=min(held_out, max(_JUDGES / max(1, fixed.count), least)),
        seed=seed,
        w=w,
        max_iterations=max_iterations,
    )
    front = Front(tiles=tiles, box=box, centre=centre)
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


def _within(
    domain: tuple[Floats, Floats], box: tuple[Floats, Floats], margin: float
) -> tuple[Floats, Floats]:
    """Return a box grown to a domain, by a margin at most."""
    low = np.minimum(np.maximum(domain[0], box[0] - margin), box[0])
    return low, np.maximum(np.minimum(domain[1], box[1] + margin), box[1])


def _in_order(matches: dict[int, TileMatch]) -> list[TileMatch]:
    """Return tiles by their numbers, whatever the order in which they were done."""
    return [matches[number] for number in sorted(matches)]


def _check(
    ours: SpotPart,
    theirs: SpotPart,
    initial: Affine | None,
    numbers: tuple[float, float, int],
    held_out: float,
    seed: int,
) -> None:
    """Raise unless samples of the clouds fit together, and all settings are in their ranges."""
    check_axes(ours.positions, theirs.positions, initial, None)
    max_rotation, w, max_iterations = numbers
    check_numbers(max_rotation, w, None, max_iterations)
    check_held_out(held_out)
    if seed < 0:
        raise InputError(f"Invalid seed {seed}. It must be at least 0.")
    check_classes(ours.spot_class, theirs.spot_class, len(ours), len(theirs))
    check_weight(ours.weight, len(ours), "fixed")
    check_weight(theirs.weight, len(theirs), "moving")
