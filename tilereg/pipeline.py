"""The main job, from two images on disk to a registered one: the order of the stages.

detect, match, fit, warp, judge. Every stage is a function of another module; this one knows what
follows what, what is written where, and what need not be done again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilereg import stages
from tilereg.config import Settings
from tilereg.errors import InputError, RegistrationError
from tilereg.io.ome_zarr import OmeZarrImage, open_image
from tilereg.io.run_folder import RunFolder
from tilereg.io.tables import read_matches, read_spots, write_matches, write_spots
from tilereg.io.transforms import read_affine, read_transform, write_transform
from tilereg.matching import Match
from tilereg.metering import Meter
from tilereg.points import Correspondences, Spots
from tilereg.progress import Progress, Silent
from tilereg.quality import correlation, describe_field, describe_match, describe_residuals
from tilereg.toml import dump_tables
from tilereg.transform import Affine, Transform

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Run", "check_images", "register"]

REGISTERED, TRANSFORM = "registered.ome.zarr", "transform.ome.zarr"
SPOTS_FIXED, SPOTS_MOVING = "spots_fixed.parquet", "spots_moving.parquet"
MATCHES, QC = "matches.parquet", "qc.json"


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
        Where detection and warp run. Default: threads of this process.
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
        If channel, level or time do not exist, or the images have no common axes.
    OutputError
        If the output is taken or cannot be written.
    RegistrationError
        If there are too few spots, or chance explains the matches: nothing is written then.
    """
    resolved = Settings() if settings is None else settings
    report = Silent() if progress is None else progress
    images = open_image(fixed), open_image(moving)
    check_images(*images)
    sources = stages.Sources.of(*images, resolved)
    start = _initial(initial, resolved)
    folder = RunFolder.at(output)
    record = _record(images, resolved, start)
    meter = Meter()
    with folder.prepared(record, overwrite=overwrite, resume=resume):
        spots = _detect(folder, sources, resolved, client, report, meter)
        transform, matches, judged = _match(folder, sources, spots, resolved, start, report, meter)
        registered = _warp(folder, images, transform, resolved, client, report, meter)
        qc = _judge(folder, sources, spots, transform, matches, judged, report, meter)
    return Run(
        output=folder.location.url,
        transform=transform,
        matches=matches,
        qc=qc,
        registered=registered,
    )


def check_images(fixed: OmeZarrImage, moving: OmeZarrImage) -> None:
    """Raise if two images cannot be registered with each other.

    Raises
    ------
    InputError
        If one has a z axis and the other has not.
    """
    if fixed.ndim != moving.ndim:
        raise InputError(
            f"Fixed and moving image have no common axes: '{fixed.location}' has "
            f"{', '.join(fixed.spatial_axes)}, '{moving.location}' has "
            f"{', '.join(moving.spatial_axes)}. Both must be 2D (y, x) or both 3D (z, y, x)."
        )


def _initial(initial: str | Path | Affine | None, settings: Settings) -> Affine | str | None:
    """Return where to start: an affine, 'none' for the images' coordinates, None to search."""
    if isinstance(initial, Affine):
        return initial
    if initial is not None:
        return read_affine(initial)
    if settings.initial.method == "file":
        return read_affine(str(settings.initial.file))
    return "none" if settings.initial.method == "none" else None


def _record(
    images: tuple[OmeZarrImage, OmeZarrImage], settings: Settings, start: Affine | str | None
) -> str:
    """Return the TOML that says what was asked for, of what, and with which version."""
    inputs = {}
    for role, image in zip(("fixed", "moving"), images, strict=True):
        levels = [[list(v.shape), list(v.grid.spacing), list(v.grid.origin)] for v in image.levels]
        print_of = json.dumps([image.axes, str(image.dtype), image.channels, levels])
        inputs[f"{role}_location"] = str(image.location)
        inputs[f"{role}_fingerprint"] = hashlib.sha256(print_of.encode()).hexdigest()[:16]
    if isinstance(start, Affine):
        numbers = np.column_stack([start.matrix, start.offset])
        inputs["initial"] = hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
    versions = {"tilereg": version("tilereg"), "numpy": version("numpy"), "zarr": version("zarr")}
    return settings.to_toml() + "\n" + dump_tables({"run_inputs": inputs, "run_versions": versions})


def _detect(
    folder: RunFolder,
    sources: stages.Sources,
    settings: Settings,
    client: Client | None,
    progress: Progress,
    meter: Meter,
) -> tuple[Spots, Spots]:
    """Find the spots of both images, or read those of an earlier start."""
    found = []
    for role, name in (("fixed", SPOTS_FIXED), ("moving", SPOTS_MOVING)):
        if folder.marked(f"detect_{role}") is None:
            with meter.stage(f"detect {role}"):
                spots = stages.find_spots(
                    sources.of_role(role), settings, client, progress, f"detect {role}"
                )
                stages.check_enough(spots, sources.of_role(role))
                write_spots(folder.path(name), spots, overwrite=True)
            folder.mark(f"detect_{role}", {"spots": len(spots)})
        else:
            spots = read_spots(folder.path(name))
            progress.note(f"detect {role}: {len(spots)} spots of the earlier start")
        found.append(spots)
    return found[0], found[1]


def _match(
    folder: RunFolder,
    sources: stages.Sources,
    spots: tuple[Spots, Spots],
    settings: Settings,
    start: Affine | str | None,
    progress: Progress,
    meter: Meter,
) -> tuple[Transform, Correspondences, dict[str, Any]]:
    """Match the clouds and fit the field, or read those of an earlier start."""
    judged = folder.marked("match")
    if judged is not None:
        progress.note("match: the transform of the earlier start")
        location = folder.path(TRANSFORM)
        return read_transform(location), read_matches(folder.path(MATCHES)), judged
    with meter.stage("match"), progress.stage("match"):
        match = stages.match_clouds(*spots, sources, settings, start)
        require(match)
    with meter.stage("fit"), progress.stage("fit"):
        fit = stages.fit_transform(match, sources, settings)
    judged = describe_match(match, len(spots[0]), len(spots[1])) | {"fit": fit.description}
    for line in fit.warnings:
        progress.note(line)
    write_matches(folder.path(MATCHES), fit.matches, overwrite=True)
    write_transform(
        folder.path(TRANSFORM),
        fit.transform,
        fixed_grid=sources.fixed.image.grid,
        provenance={"model": match.model, "pairs": len(fit.matches), **fit.description},
        overwrite=True,
    )
    folder.mark("match", judged)
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
    images: tuple[OmeZarrImage, OmeZarrImage],
    transform: Transform,
    settings: Settings,
    client: Client | None,
    progress: Progress,
    meter: Meter,
) -> OmeZarrImage:
    """Write the moving image and its labels on the fixed grid, or finish an earlier start."""
    if folder.marked("warp") is None:
        with meter.stage("warp"):
            stages.write_registered(
                images[1],
                images[0].grid,
                transform,
                folder.path(REGISTERED),
                settings,
                client=client,
                progress=progress,
                folder=folder,
            )
        folder.mark("warp")
    return open_image(folder.path(REGISTERED))


def _judge(
    folder: RunFolder,
    sources: stages.Sources,
    spots: tuple[Spots, Spots],
    transform: Transform,
    matches: Correspondences,
    judged: dict[str, Any],
    progress: Progress,
    meter: Meter,
) -> dict[str, Any]:
    """Gather the figures and write them."""
    with meter.stage("judge"), progress.stage("judge"):
        spacing = np.asarray(sources.moving.image.grid.spacing)
        fixed, moving = sources.fixed.small(), sources.moving.small()
        qc: dict[str, Any] = {
            "status": judged["status"],
            "fixed": str(sources.fixed.image.location),
            "moving": str(sources.moving.image.location),
            "assumed": [*sources.fixed.image.notes, *sources.moving.image.notes],
            "spots": {
                "fixed": len(spots[0]),
                "moving": len(spots[1]),
                "fixed_sigma_um": stages.median(spots[0].sigma),
                "moving_sigma_um": stages.median(spots[1].sigma),
                "fixed_localisation_um": stages.median(spots[0].localisation),
                "moving_localisation_um": stages.median(spots[1].localisation),
            },
            "matches": judged,
            "residual": describe_residuals(matches, transform, *spots, spacing),
            "field": describe_field(transform, sources.fixed.image.grid),
            "ncc": correlation(fixed, fixed.grid, moving, moving.grid, transform),
        }
    qc["stages"] = meter.as_rows()
    qc["peak_memory_bytes"] = meter.peak_memory_bytes
    folder.location.write_json(QC, qc)
    return qc
