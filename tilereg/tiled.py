"""Matching of the spots of a run or of tables: in one piece, or, of many, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from tilereg import given
from tilereg.columns import Columns
from tilereg.config import Settings
from tilereg.errors import InputError
from tilereg.grid import Grid
from tilereg.io.spot_cells import SpotCells, sliced, write_cells
from tilereg.io.stores import Location
from tilereg.io.tables import iter_spots
from tilereg.lazy.match import match_sources
from tilereg.matching import Match
from tilereg.matching.tiles import LEAST_TILE, TileMatch, plan_tiles
from tilereg.points import Spots
from tilereg.progress import Progress
from tilereg.spot_source import ArraySource, SpotSource
from tilereg.transform import Affine

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["match_chosen", "match_tiles", "tile_spots_of"]

# Clouds of more spots are matched tile by tile unless the settings say otherwise, with so many
# spots a tile.
_IN_ONE_PIECE, _A_TILE = 2_000_000, 200_000


def tile_spots_of(settings: Settings, num_fixed: int, num_moving: int) -> int | None:
    """Return how many fixed spots a tile owns, None where clouds are matched in one piece.

    Raises
    ------
    InputError
        If tiles are asked for together with what only a match in one piece knows.
    """
    chosen = settings.match
    unable = {
        f"match.method = '{chosen.method}'": chosen.method != "cpd",
        "match.landmarks": chosen.landmarks is not None,
        "match.beta": chosen.beta is not None,
        "field.model = 'coherent'": settings.field.model == "coherent",
    }
    named = [name for name, is_there in unable.items() if is_there]
    if isinstance(chosen.tile_spots, int):
        if named:
            raise InputError(
                f"match.tile_spots = {chosen.tile_spots} cannot be used with {', '.join(named)}: "
                "tiles are matched by Coherent Point Drift and joined by kriging. Set "
                "match.tile_spots to 'none', or leave the others out."
            )
        return chosen.tile_spots
    is_many = max(num_fixed, num_moving) > _IN_ONE_PIECE
    return _A_TILE if chosen.tile_spots == "auto" and is_many and not named else None


def match_chosen(
    clouds: given.Clouds,
    settings: Settings,
    start: Affine | None,
    domain: Grid | None,
    *,
    place: str,
    client: Client | None,
    progress: Progress,
) -> Match:
    """Match the spots that take part as the settings say; pairs are rows of all spots.

    Parameters
    ----------
    clouds : Clouds
    settings : Settings
    start : Affine, optional
    domain : Grid, optional
        Where the field may vary.
    place : str
        Folder that workers of the client read spots from; it is removed in the end.
    client : distributed.Client, optional
    progress : Progress
    """
    size = tile_spots_of(settings, *clouds.num_used)
    if size is None:
        with progress.stage("match"):
            return given.match_used(clouds, settings, start, domain)
    chosen, rotation = settings.match, settings.initial.max_rotation
    with _readable(*clouds.used, place=place, client=client) as (fixed, moving):
        match = _with_progress(
            fixed,
            moving,
            size,
            progress,
            initial=start,
            max_rotation=180.0 if rotation is None else rotation,
            w=0.9 if chosen.w is None else chosen.w,
            held_out=chosen.held_out,
            domain=None if domain is None else domain.bounds,
            max_iterations=chosen.max_iterations,
            seed=chosen.seed,
            client=client,
        )
    if chosen.seams:
        progress.note("note: jumps between fields of view are not sought where spots are tiled")
    return replace(match, correspondences=clouds.rows(match.correspondences))


def match_tiles(
    fixed: Spots | str | Path,
    moving: Spots | str | Path,
    place: str | Path,
    *,
    columns: Columns | str | None = None,
    moving_columns: Columns | str | None = None,
    tile_spots: int = _A_TILE,
    initial: Affine | None = None,
    max_rotation: float = 180.0,
    w: float = 0.9,
    held_out: float = 0.05,
    domain: tuple[ArrayLike, ArrayLike] | None = None,
    max_iterations: int = 100,
    seed: int = 0,
    client: Client | None = None,
    progress: Callable[[TileMatch], None] | None = None,
) -> Match:
    """Match two clouds of spots that no worker could hold, tile by tile.

    Parameters
    ----------
    fixed, moving : Spots, or location of a Parquet file
        A file is read in pieces, twice, and never held as a whole.
    place : str or Path
        Folder for the spots sorted by place, which all workers can read, local or a URL. They are
        left in its subfolders ``fixed`` and ``moving``, where a next match replaces them; other
        files there are not touched, but refused.
    columns, moving_columns : str, optional
        What the columns of the files are called, as in ``"z=centroid-0,y=centroid-1,x=centroid-2,
        class=gene"``; those of the moving one default to the first.
    tile_spots : int
        About how many fixed spots a tile owns.
    initial, max_rotation, w, held_out, domain, max_iterations, seed
        As in `tilereg.match_spots`; which spots are held out follows from their rows.
    client : distributed.Client, optional
        Where tiles are matched. Default: threads of this process.
    progress : callable, optional
        Called in this process with each tile that is done.

    Returns
    -------
    Match
        Equal to that of `tilereg.match_spots` within the noise. `correspondences` know their tile;
        ``details["tiles"]`` has the status of every tile, and `warnings` name those without pairs.

    Raises
    ------
    InputError
        If a table cannot be used, or a setting is out of its range.
    OutputError
        If the folder holds anything else, or cannot be written.

    Notes
    -----
    The pose is found in a box of some 100,000 spots; from there tiles are matched ring by ring,
    from where those before lead, so that a deformation may be large far from there. A worker holds
    a tile and a halo of ten spacings, this process the pairs and the normal equations of one field
    through all of them. Landmarks, other engines and jumps between fields of view are left to
    `tilereg.match_spots`.
    """
    if tile_spots < LEAST_TILE:
        raise InputError(f"Invalid tile_spots {tile_spots}. At least {LEAST_TILE} are needed.")
    others = columns if moving_columns is None else moving_columns
    folder = Location.of(place)
    sources = [
        write_cells(folder.child(role).url, _parts(spots, named))
        for role, spots, named in (("fixed", fixed, columns), ("moving", moving, others))
    ]
    box = None
    if domain is not None:
        box = (np.asarray(domain[0], np.float64), np.asarray(domain[1], np.float64))
    return match_sources(
        *sources,
        tile_spots=tile_spots,
        initial=initial,
        max_rotation=max_rotation,
        w=w,
        held_out=held_out,
        domain=box,
        max_iterations=max_iterations,
        seed=seed,
        client=client,
        progress=progress,
    )


def _parts(
    spots: Spots | str | Path, columns: Columns | str | None
) -> Callable[[], Iterable[Spots]]:
    """Return spots, in memory or of a file, in pieces."""
    if isinstance(spots, Spots):
        return sliced(spots)
    if not isinstance(spots, str | Path):
        raise InputError(
            f"Spots of type {type(spots).__name__} cannot be tiled. Give the location of a table, "
            "or tilereg.Spots.at(positions)."
        )
    named = Columns.parse(columns) if isinstance(columns, str) else columns
    return lambda: iter_spots(spots, named)


@contextmanager
def _readable(
    fixed: Spots, moving: Spots, *, place: str, client: Client | None
) -> Iterator[tuple[SpotSource, SpotSource]]:
    """Hold two clouds such that tiles can be read where they are matched."""
    if client is None:
        yield ArraySource(fixed), ArraySource(moving)
        return
    folder = Location.of(place)
    try:
        cells: list[SpotCells] = [
            write_cells(folder.child(role).url, sliced(spots))
            for role, spots in (("fixed", fixed), ("moving", moving))
        ]
        yield cells[0], cells[1]
    finally:
        folder.remove()


def _with_progress(
    fixed: SpotSource, moving: SpotSource, size: int, progress: Progress, **options: Any
) -> Match:
    """Match tile by tile and say how far it is."""
    total = len(plan_tiles(fixed.sample().positions, fixed.count, size))
    done: set[int] = set()
    with progress.stage("match, tiles", total) as stage:

        def finished(match: TileMatch) -> None:
            # A tile that is tried again is no further step.
            stage.advance(int(match.tile.number not in done))
            done.add(match.tile.number)

        return match_sources(fixed, moving, tile_spots=size, progress=finished, **options)
