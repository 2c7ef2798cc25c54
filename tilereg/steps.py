"""Single steps of a registration, from file to file, for those who put their own order together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilereg import given, stages
from tilereg.config import Settings
from tilereg.grid import Grid
from tilereg.io.files import check_free
from tilereg.io.landmarks import write_landmarks
from tilereg.io.ome_zarr import OmeZarrImage, open_image
from tilereg.io.stores import Location, outputs
from tilereg.io.tables import (
    check_suffix,
    read_points,
    write_matches,
    write_points,
    write_spots,
)
from tilereg.io.transforms import read_transform, write_transform
from tilereg.matching import Match
from tilereg.pipeline import LANDMARKS, MATCHES, QC, TRANSFORM, connected, require
from tilereg.points import Spots
from tilereg.progress import Progress, Silent
from tilereg.quality import (
    describe_field,
    describe_landmarks,
    describe_match,
    describe_residuals,
    describe_support,
    list_warnings,
    plain,
)
from tilereg.registered import plan_parts, write_replacing
from tilereg.tiled import match_chosen
from tilereg.transform import Affine

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["PointsResult", "detect", "match", "points", "warp"]

# For the time of a match on a cluster: spots sorted by place.
_TILES = ".tiles"


def detect(
    image: str | Path,
    table: str | Path,
    *,
    settings: Settings | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Spots:
    """Find the spots of an image and write them to a table.

    Parameters
    ----------
    image : str or Path
        OME-Zarr image; channel, level and time as the settings say.
    table : str or Path
        Parquet or CSV file to write.
    settings, client, progress
        As in `tilereg.register`.
    overwrite : bool
        Whether the table may exist.

    Raises
    ------
    ImageError, InputError, OutputError
        If the image cannot be read, or the table exists or cannot be written.
    """
    resolved = Settings() if settings is None else settings
    check_suffix(table)
    check_free(table, overwrite=overwrite)
    source = stages.choose(open_image(image), resolved)
    report = Silent() if progress is None else progress
    with connected(client, resolved) as place:
        spots = stages.find_spots(source, resolved, place, report, "detect")
    write_spots(table, spots, overwrite=overwrite)
    return spots


def match(
    fixed_table: str | Path,
    moving_table: str | Path,
    output: str | Path,
    *,
    settings: Settings | None = None,
    initial: str | Path | Affine | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Match:
    """Match two tables of points; write the transform, the matches and ``qc.json``.

    Parameters
    ----------
    fixed_table, moving_table : str or Path
        Parquet or CSV with columns z, y, x (y, x in 2D) in micrometre, or what the settings say.
    output : str or Path
        Folder that is made.
    settings : Settings, optional
        The sections `spots`, `initial`, `match`, `field` and `compute` are used.
    initial : str, Path or Affine, optional
        First affine, fixed to moving.
    client : distributed.Client, optional
        Where the tiles of large clouds are matched. Default: where the settings' `compute` says,
        else threads of this process.
    overwrite : bool
        Whether the files of an earlier match in the folder are replaced.

    Raises
    ------
    InputError
        If a table cannot be used.
    OutputError
        If the output exists or cannot be written.
    RegistrationError
        If chance explains the matches: nothing is written then.
    """
    resolved = Settings() if settings is None else settings
    report = Silent() if progress is None else progress
    folder = Location.of(output)
    for name in (TRANSFORM, MATCHES, LANDMARKS, QC):
        check_free(folder.child(name).url, overwrite=overwrite)
    fixed = given.spots_of(fixed_table, resolved, "fixed")
    moving = given.spots_of(moving_table, resolved, "moving")
    start = stages.first_affine(initial, resolved, fixed.ndim)
    clouds = given.clouds_of(fixed, moving, resolved)
    if clouds.note:
        report.note(clouds.note)
    with connected(client, resolved) as place:
        found = match_chosen(
            clouds,
            resolved,
            start,
            None,
            place=folder.child(_TILES).url,
            client=place,
            progress=report,
        )
    require(found)
    grid = _grid_around(fixed, found)
    with report.stage("fit"):
        fit = stages.fit_transform(found, grid, resolved)
    for line in fit.warnings:
        report.note(line)
    support = describe_support(
        fixed, fit.matches, fit.transform, None, found.share_chance, clouds.inside[0]
    )
    field = describe_field(fit.transform, grid)
    more = list_warnings(field, support, found.details.get("seams", ()))
    found = replace(
        found,
        warnings=(*found.warnings, *more),
        transform=fit.transform,
        judge=fit.judge,
        correspondences=fit.matches,
        landmarks=fit.landmarks,
    )
    write_transform(
        folder.child(TRANSFORM).url,
        found.transform,
        fixed_grid=grid,
        provenance={"model": found.model, "pairs": len(found.correspondences), **fit.description},
        overwrite=overwrite,
    )
    write_matches(folder.child(MATCHES).url, found.correspondences, overwrite=overwrite)
    if found.landmarks is not None:
        write_landmarks(folder.child(LANDMARKS).url, found.landmarks, overwrite=overwrite)
    with outputs("write", f"'{folder.child(QC)}'"):
        figures = _figures(found, fit.description, clouds)
        folder.write_json(QC, plain(figures | {"field": field, "support": support}))
    return found


def _grid_around(spots: Spots, found: Match) -> Grid:
    """Return a grid over the fixed spots, one voxel for the mean distance of neighbours."""
    low, high = spots.positions.min(axis=0), spots.positions.max(axis=0)
    step = found.spacing
    shape = tuple(int(n) for n in np.ceil((high - low) / step).astype(np.int64) + 1)
    return Grid(shape=shape, spacing=(step,) * spots.ndim, origin=tuple(low.tolist()))


def _figures(found: Match, description: dict[str, Any], clouds: given.Clouds) -> dict[str, Any]:
    """Return the content of ``qc.json`` for a match of tables; a voxel is a micrometre."""
    fixed, moving = clouds.fixed, clouds.moving
    ones = np.ones(fixed.ndim)
    residual = describe_residuals(
        found.correspondences, found.transform, found.judge, fixed, moving, ones
    )
    for row in ("held_out", "fitted"):
        residual[row] = {k: v for k, v in residual[row].items() if not k.endswith("_voxel")}
    matches = describe_match(found, *clouds.num_used) | {"fit": description}
    figures: dict[str, Any] = {
        "status": found.status,
        "spots": {"fixed": len(fixed), "moving": len(moving), "left_out": clouds.num_outside},
        "matches": matches,
        "residual": residual,
        "warnings": list(found.warnings),
    }
    if found.landmarks is not None:
        figures["landmarks"] = describe_landmarks(found.landmarks)
    return dict(plain(figures))


def warp(
    image: str | Path,
    transform: str | Path,
    output: str | Path,
    *,
    like: str | Path,
    settings: Settings | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> OmeZarrImage:
    """Write an image on another image's grid with a transform from a run.

    Parameters
    ----------
    image : str or Path
        OME-Zarr image in the moving world.
    transform : str or Path
        A run's ``transform.ome.zarr``, or the run's folder.
    output : str or Path
        OME-Zarr to write.
    like : str or Path
        OME-Zarr image whose grid is used.
    settings, client, progress
        As in `tilereg.register`; the sections `warp` and `output` are used.
    overwrite : bool
        Whether an OME-Zarr at the output is removed first.

    Raises
    ------
    ImageError, InputError, OutputError
        If something cannot be read or written.
    """
    resolved = Settings() if settings is None else settings
    report = Silent() if progress is None else progress
    moving, target = open_image(image), open_image(like)
    location = stages.transform_at(transform)
    map_ = read_transform(location)
    stages.check_ndim(moving, map_, "The image")
    stages.check_ndim(target, map_, "The image to be like")
    with connected(client, resolved) as place:
        write_replacing(
            plan_parts(moving, target.grid, output, resolved),
            map_,
            inputs=(moving.location, target.location, location),
            memory=resolved.compute.memory,
            client=place,
            progress=report,
            overwrite=overwrite,
        )
    return open_image(output)


@dataclass(frozen=True, kw_only=True)
class PointsResult:
    """How many points were mapped, and how many could not be (they are NaN in the table)."""

    count: int
    num_failed: int


def points(
    table: str | Path,
    transform: str | Path,
    output: str | Path,
    *,
    inverse: bool = False,
    overwrite: bool = False,
) -> PointsResult:
    """Map a table of points, fixed to moving or, with `inverse`, moving to fixed.

    Parameters
    ----------
    table : str or Path
        CSV or Parquet with columns z, y, x (y, x in 2D) in micrometre; other columns are kept.
    transform : str or Path
        A run's ``transform.ome.zarr``, or the run's folder.
    output : str or Path
        CSV or Parquet to write, rows in the same order.

    Returns
    -------
    PointsResult

    Raises
    ------
    InputError, OutputError
        If a file cannot be used.
    """
    check_suffix(output)
    check_free(output, overwrite=overwrite)
    rows = read_points(table)
    map_ = read_transform(stages.transform_at(transform))
    moved = map_.inverse(rows.positions) if inverse else map_(rows.positions)
    write_points(output, rows, moved, overwrite=overwrite)
    failed = int(np.isnan(moved).any(axis=1).sum())
    return PointsResult(count=len(moved), num_failed=failed)
