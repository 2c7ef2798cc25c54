"""The main job, from two images on disk to a registered one: the order of the stages.

detect, match, fit, warp, judge. Every stage is a function of another module; this one knows what
follows what, what is written where, and what need not be done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilereg import given, stages
from tilereg.config import Settings
from tilereg.errors import InputError, RegistrationError
from tilereg.io.landmarks import write_landmarks
from tilereg.io.ome_zarr import OmeZarrImage, open_image
from tilereg.io.run_folder import RunFolder, check_apart
from tilereg.io.tables import read_matches, write_matches, write_spots
from tilereg.io.transforms import read_transform, write_transform
from tilereg.lazy.cluster import connect
from tilereg.matching import Match
from tilereg.matching.engines import check_installed
from tilereg.metering import Meter, StageCost
from tilereg.plan import REGISTERED, RunPlan, check_images, plan
from tilereg.points import Correspondences, Spots
from tilereg.progress import Progress, Silent
from tilereg.quality import (
    correlation,
    describe_field,
    describe_landmarks,
    describe_match,
    describe_residuals,
    describe_support,
    list_warnings,
    plain,
)
from tilereg.registered import Part, plan_parts, write_parts
from tilereg.tiled import match_chosen
from tilereg.toml import dump_tables
from tilereg.transform import Affine, Transform

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Run", "RunPlan", "plan", "register", "require"]

TRANSFORM = "transform.ome.zarr"
SPOTS_FIXED, SPOTS_MOVING = "spots_fixed.parquet", "spots_moving.parquet"
_TILES = "progress/tiles"
MATCHES, LANDMARKS, QC = "matches.parquet", "landmarks.parquet", "qc.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished registration.

    Parameters
    ----------
    output : str
        The run's folder.
    transform : Transform
        The pull-back, fixed to moving, micrometre.
    matches : Correspondences
        The pairs that it was fitted to and judged by.
    qc : dict
        The content of ``qc.json``.
    registered : OmeZarrImage
        The moving image on the fixed image's grid.
    """

    output: str
    transform: Transform
    matches: Correspondences
    qc: dict[str, Any]
    registered: OmeZarrImage


def register(
    fixed: str | Path,
    moving: str | Path,
    output: str | Path,
    *,
    settings: Settings | None = None,
    client: Client | None = None,
    initial: str | Path | Affine | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Register a moving image onto a fixed one, from store to store.

    Parameters
    ----------
    fixed, moving : str or Path
        OME-Zarr images, local or URLs. Both with or both without a z axis.
    output : str or Path
        Folder that is made: the registered image, the transform, spots, matches and ``qc.json``.
    settings : Settings, optional
        Default: all from the data.
    client : distributed.Client, optional
        Where detection, tiles of large clouds and warp run. Default: where the settings' `compute`
        says, else threads of this process.
    initial : str, Path or Affine, optional
        First affine, fixed to moving, micrometre; goes before the settings' `initial`.
    overwrite : bool
        Whether an earlier run in the folder is removed first.
    resume : bool
        Whether an earlier run in the folder goes on; settings and inputs must be the same.
    progress : Progress, optional
        Told how far the work is.

    Returns
    -------
    Run

    Raises
    ------
    ImageError
        If an image is missing, not OME-Zarr, damaged, or holds a voxel that is not finite.
    InputError
        If channel, level or time do not exist, a setting does not fit the images, or the images
        have no common axes.
    OutputError
        If the output is taken or cannot be written.
    RegistrationError
        If there are too few spots, or chance explains the matches: nothing is written then.
    ResourceError
        If a task needs more memory than there is, or a cluster gave out.
    """
    resolved = Settings() if settings is None else settings
    report = Silent() if progress is None else progress
    if overwrite and resume:
        raise InputError("A run cannot both go on and start anew. Give resume or overwrite.")
    given.check(resolved)
    check_installed(resolved.match.method)
    images = open_image(fixed), open_image(moving)
    check_images(*images)
    sources = stages.Sources.of(*images, resolved)
    start = stages.first_affine(initial, resolved, images[0].ndim)
    folder = RunFolder.at(output)
    inputs = [*(image.location for image in images), *given.files(resolved).values()]
    check_apart(folder.location.url, inputs)
    parts = plan_parts(images[1], images[0].grid, folder.path(REGISTERED), resolved)
    folder.check_free(overwrite=overwrite, resume=resume)
    record = _record(images, resolved, start)
    meter = Meter()
    with (
        connected(client, resolved) as place,
        folder.prepared(record, overwrite=overwrite, resume=resume),
    ):
        spots = _detect(folder, sources, resolved, place, report, meter)
        clouds = given.clouds_of(*spots, resolved)
        if clouds.note:
            report.note(clouds.note)
        transform, matches, judged = _match(
            folder, sources, clouds, resolved, start, place, report, meter
        )
        registered = _warp(folder, parts, transform, resolved, place, report, meter)
        qc = _judge(folder, sources, clouds, transform, matches, judged, report, meter)
    return Run(
        output=folder.location.url,
        transform=transform,
        matches=matches,
        qc=qc,
        registered=registered,
    )


@contextmanager
def connected(client: Client | None, settings: Settings) -> Iterator[Client | None]:
    """Hold the given client, or the one that the settings ask for, None for threads."""
    if client is not None:
        yield client
        return
    asked = settings.compute
    with connect(
        scheduler=asked.scheduler,
        scheduler_file=asked.scheduler_file,
        workers=asked.workers,
        memory=asked.memory,
    ) as own:
        yield own


def _record(
    images: tuple[OmeZarrImage, OmeZarrImage], settings: Settings, start: Affine | None
) -> str:
    """Return the TOML that says what was asked for, of what, and with which version."""
    inputs = {}
    for role, image in zip(("fixed", "moving"), images, strict=True):
        inputs[f"{role}_location"] = image.location
        inputs[f"{role}_fingerprint"] = stages.fingerprint(image)
    if start is not None:
        numbers = np.column_stack([start.matrix, start.offset])
        inputs["initial_fingerprint"] = hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
    inputs |= given.fingerprints(settings)
    versions = {"tilereg": version("tilereg"), "numpy": version("numpy"), "zarr": version("zarr")}
    return settings.to_toml() + "\n" + dump_tables({"run_inputs": inputs, "run_versions": versions})


def _earlier(
    folder: RunFolder, stage: str, meter: Meter, *, needs: str = "costs"
) -> dict[str, Any] | None:
    """Return what an earlier start found in a stage; None where it is not complete.

    Nor where an earlier version did not write what is needed: then the stage is done anew.
    """
    content = folder.marked(stage)
    if content is None or needs not in content:
        return None
    meter.stages.extend(StageCost(**cost) for cost in content["costs"])
    return content


def _complete(folder: RunFolder, stage: str, meter: Meter, num_costs: int, **content: Any) -> None:
    """Mark a stage complete, with what it found and what its last `num_costs` parts took."""
    costs = [asdict(cost) for cost in meter.stages[-num_costs:]]
    folder.mark(stage, content | {"costs": costs})


def _detect(
    folder: RunFolder,
    sources: stages.Sources,
    settings: Settings,
    client: Client | None,
    progress: Progress,
    meter: Meter,
) -> tuple[Spots, Spots]:
    """Find or read the spots of both images, or read those of an earlier start."""
    found = []
    for role, name in (("fixed", SPOTS_FIXED), ("moving", SPOTS_MOVING)):
        source, table = sources.of_role(role), given.table_of(settings, role)
        what = f"detect {role}" if table is None else f"read {role}"
        if _earlier(folder, f"detect_{role}", meter) is None:
            with meter.stage(what):
                if table is None:
                    spots = stages.find_spots(source, settings, client, progress, what)
                    stages.check_enough(spots, source)
                else:
                    spots, outside = given.spots_in(source, table, settings, role)
                    beside = f", {outside} outside of the image" if outside else ""
                    progress.note(f"{what}: {len(spots)} spots of '{table}'{beside}")
                write_spots(folder.path(name), spots, overwrite=True)
            _complete(folder, f"detect_{role}", meter, 1, spots=len(spots))
        else:
            spots = given.read_back(folder.path(name), settings, role)
            progress.note(f"{what}: {len(spots)} spots of the earlier start")
        found.append(spots)
    return found[0], found[1]


def _match(
    folder: RunFolder,
    sources: stages.Sources,
    clouds: given.Clouds,
    settings: Settings,
    start: Affine | None,
    client: Client | None,
    progress: Progress,
    meter: Meter,
) -> tuple[Transform, Correspondences, dict[str, Any]]:
    """Match the clouds and fit the field, or read those of an earlier start."""
    earlier = _earlier(folder, "match", meter, needs="judged")
    if earlier is not None:
        progress.note("match: the transform of the earlier start")
        location = folder.path(TRANSFORM)
        return read_transform(location), read_matches(folder.path(MATCHES)), earlier["judged"]
    grid = sources.fixed.image.grid
    with meter.stage("match"):
        match = match_chosen(
            clouds,
            settings,
            start,
            grid,
            place=folder.path(_TILES),
            client=client,
            progress=progress,
        )
        require(match)
    with meter.stage("fit"), progress.stage("fit"):
        fit = stages.fit_transform(match, grid, settings)
    spacing = np.asarray(sources.moving.image.grid.spacing)
    judged = plain(
        {
            "matches": describe_match(match, *clouds.num_used) | {"fit": fit.description},
            "residual": describe_residuals(
                fit.matches, fit.transform, fit.judge, clouds.fixed, clouds.moving, spacing
            ),
        }
    )
    for line in fit.warnings:
        progress.note(line)
    if fit.landmarks is not None:
        judged |= plain({"landmarks": describe_landmarks(fit.landmarks)})
        write_landmarks(folder.path(LANDMARKS), fit.landmarks, overwrite=True)
    judged |= {"given": given.files(settings), "warnings": list(match.warnings)}
    write_matches(folder.path(MATCHES), fit.matches, overwrite=True)
    write_transform(
        folder.path(TRANSFORM),
        fit.transform,
        fixed_grid=grid,
        provenance={"model": match.model, "pairs": len(fit.matches), **fit.description},
        overwrite=True,
    )
    _complete(folder, "match", meter, 2, judged=judged)
    return fit.transform, fit.matches, judged


def require(match: Match) -> None:
    """Raise unless a registration was found.

    Raises
    ------
    RegistrationError
        With the figures that say so.
    """
    if not match.is_ok:
        raise RegistrationError(
            f"No registration was found: {match.message} Check that both images show the same "
            "spots in the chosen channels, or set detect.sigma, or give an initial transform."
        )


def _warp(
    folder: RunFolder,
    parts: list[Part],
    transform: Transform,
    settings: Settings,
    client: Client | None,
    progress: Progress,
    meter: Meter,
) -> OmeZarrImage:
    """Write the moving image and its labels on the fixed grid, or finish an earlier start."""
    if _earlier(folder, "warp", meter) is None:
        with meter.stage("warp"):
            write_parts(
                parts,
                transform,
                memory=settings.compute.memory,
                client=client,
                progress=progress,
                folder=folder,
            )
        _complete(folder, "warp", meter, 1)
    return open_image(folder.path(REGISTERED))


def _judge(
    folder: RunFolder,
    sources: stages.Sources,
    clouds: given.Clouds,
    transform: Transform,
    matches: Correspondences,
    judged: dict[str, Any],
    progress: Progress,
    meter: Meter,
) -> dict[str, Any]:
    """Gather the figures and write them, or read those of an earlier start."""
    if folder.marked("judge") is not None and (written := folder.read_json(QC)):
        return written
    with meter.stage("judge"), progress.stage("judge"):
        fixed = sources.fixed.small()
        moving = sources.moving.nearest(fixed.grid)
        qc: dict[str, Any] = {
            "status": judged["matches"]["status"],
            "fixed": str(sources.fixed.image.location),
            "moving": str(sources.moving.image.location),
            "assumed": [*sources.fixed.image.notes, *sources.moving.image.notes],
            "spots": {
                "fixed": len(clouds.fixed),
                "moving": len(clouds.moving),
                "fixed_sigma_um": stages.median(clouds.fixed.sigma),
                "moving_sigma_um": stages.median(clouds.moving.sigma),
                "fixed_localisation_um": stages.median(clouds.fixed.localisation),
                "moving_localisation_um": stages.median(clouds.moving.localisation),
                "left_out": clouds.num_outside,
            },
            **judged,
            "field": describe_field(transform, sources.fixed.image.grid),
            "ncc": correlation(fixed, fixed.grid, moving, moving.grid, transform),
        }
    qc["support"] = describe_support(
        clouds.fixed,
        matches,
        transform,
        sources.moving.image.grid,
        judged["matches"]["share_chance"],
        clouds.inside[0],
    )
    seams = judged["matches"]["details"].get("seams", ())
    found = list_warnings(qc["field"], qc["support"], seams)
    qc["warnings"] = [*judged.get("warnings", ()), *found]
    qc["stages"] = meter.as_rows()
    qc["peak_memory_bytes"] = meter.peak_memory_bytes
    qc = plain(qc)
    folder.location.write_json(QC, qc)
    folder.mark("judge")
    return qc
