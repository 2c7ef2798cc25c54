"""The stages of a run between stores and algorithms: what is read, computed and written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilereg.config import Settings
from tilereg.detector import Detector
from tilereg.errors import InputError, OutputError, RegistrationError, TileregError
from tilereg.field import fit_field
from tilereg.grid import Grid
from tilereg.io.ome_zarr import OmeZarrImage, ZarrReader, create_image, remove_store
from tilereg.io.run_folder import RunFolder
from tilereg.io.stores import Location
from tilereg.lazy.detect import detect_volume
from tilereg.lazy.volume import build_levels, warp_volume
from tilereg.matching import Match, match_spots
from tilereg.points import Correspondences, Spots
from tilereg.progress import Progress
from tilereg.quality import describe_field
from tilereg.spots import plan_detector
from tilereg.transform import Affine, Transform
from tilereg.warp import WarpPlan
from tilereg.windows import num_windows

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Fit",
    "Source",
    "Sources",
    "check_enough",
    "check_ndim",
    "choose",
    "detect_chunks",
    "find_spots",
    "fit_transform",
    "match_clouds",
    "median",
    "write_registered",
    "write_replacing",
]

_FEWEST_SPOTS = 4
_DETECT_VOXELS = 4_000_000
_SMALL_VOXELS = 16_000_000


@dataclass(frozen=True)
class Source:
    """One image and what of it is registered.

    Parameters
    ----------
    image : OmeZarrImage
    channel, level, time : int
    """

    image: OmeZarrImage
    channel: int
    level: int
    time: int

    @property
    def reader(self) -> ZarrReader:
        """The volume in which spots are sought."""
        return self.image.reader(level=self.level, channel=self.channel, time=self.time)

    def small(self) -> ZarrReader:
        """Return the finest level that is quickly read as a whole, else the coarsest."""
        levels = range(len(self.image.levels))
        fits = [n for n in levels if self.image.levels[n].grid.size <= _SMALL_VOXELS]
        level = fits[0] if fits else len(self.image.levels) - 1
        return self.image.reader(level=level, channel=self.channel, time=self.time)

    def __str__(self) -> str:
        """Name the volume as an error does."""
        name = self.image.channels[self.channel] if self.image.channels else "0"
        return f"'{self.image.location}' (channel '{name}', level {self.level}, time {self.time})"


@dataclass(frozen=True)
class Sources:
    """The two volumes that are registered."""

    fixed: Source
    moving: Source

    @classmethod
    def of(cls, fixed: OmeZarrImage, moving: OmeZarrImage, settings: Settings) -> Sources:
        """Choose channel, level and time of both images as the settings say."""
        chosen = settings.input
        return cls(
            choose(fixed, settings, chosen.fixed_channel),
            choose(moving, settings, chosen.moving_channel),
        )

    def of_role(self, role: str) -> Source:
        """Return the fixed or the moving source."""
        return self.fixed if role == "fixed" else self.moving


def choose(image: OmeZarrImage, settings: Settings, channel: int | str | None = None) -> Source:
    """Choose channel, level and time of an image; all are checked by opening a reader."""
    wanted = settings.input.channel if channel is None else channel
    source = Source(image, image.channel_index(wanted), settings.input.level, settings.input.time)
    source.image.reader(level=source.level, channel=source.channel, time=source.time)
    return source


def detect_chunks(reader: ZarrReader) -> tuple[int, ...]:
    """Return the block of a detection task: whole storage chunks, some million voxels."""
    chunk = [min(c, n) for c, n in zip(reader.chunks, reader.shape, strict=True)]
    while math.prod(chunk) < _DETECT_VOXELS:
        growing = [
            (c * (n - c > 0), -axis)
            for axis, (c, n) in enumerate(zip(chunk, reader.shape, strict=True))
            if c < n
        ]
        if not growing:
            break
        # The shortest side grows, so that the halo costs least.
        axis = min(
            (a for a in range(len(chunk)) if chunk[a] < reader.shape[a]), key=lambda a: chunk[a]
        )
        chunk[axis] = min(2 * chunk[axis], reader.shape[axis])
    return tuple(chunk)


def plan_source(source: Source, settings: Settings) -> Detector:
    """Resolve size and threshold of a volume's spots."""
    chosen = settings.detect
    reader = source.reader
    return plan_detector(
        reader,
        reader.grid,
        sigma=chosen.sigma,
        threshold=chosen.threshold,
        polarity=chosen.polarity,
        max_spots=chosen.max_spots,
    )


def find_spots(
    source: Source,
    settings: Settings,
    client: Client | None,
    progress: Progress,
    name: str,
) -> Spots:
    """Find the spots of a volume on disk, one task a block."""
    reader = source.reader
    detector = plan_source(source, settings)
    chunks = detect_chunks(reader)
    with progress.stage(name, num_windows(reader.shape, chunks)) as stage:
        spots = detect_volume(
            reader,
            reader.grid,
            detector,
            chunks,
            client=client,
            progress=lambda *_: stage.advance(),
        )
    sizes = ", ".join(f"{min(s):.3g}" for s in detector.sigmas)
    progress.note(f"{name}: {len(spots)} spots of sigma {sizes} um")
    return spots


def check_enough(spots: Spots, source: Source) -> None:
    """Raise if there are too few spots to match.

    Raises
    ------
    RegistrationError
        With the number and what to change.
    """
    if len(spots) < _FEWEST_SPOTS:
        raise RegistrationError(
            f"Too few spots: {len(spots)} in {source}, at least {_FEWEST_SPOTS} are needed. Choose "
            "another channel, or set detect.sigma or detect.threshold."
        )


def match_clouds(
    fixed: Spots,
    moving: Spots,
    sources: Sources,
    settings: Settings,
    start: Affine | str | None,
) -> Match:
    """Match two clouds of spots as the settings say."""
    chosen = settings.match
    affine = Affine.identity(fixed.ndim) if isinstance(start, str) else start
    rotation = settings.initial.max_rotation
    return match_spots(
        fixed,
        moving,
        method=chosen.method,
        initial=affine,
        max_rotation=180.0 if rotation is None else rotation,
        w=chosen.w,
        beta=chosen.beta,
        held_out=chosen.held_out,
        domain=sources.fixed.image.grid.bounds,
        max_iterations=chosen.max_iterations,
        seed=chosen.seed,
    )


@dataclass(frozen=True)
class Fit:
    """The transform that is used, and why this one."""

    transform: Transform
    matches: Correspondences
    description: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def fit_transform(match: Match, sources: Sources, settings: Settings) -> Fit:
    """Choose between the field of the matching and a thin-plate spline through the pairs.

    The one that predicts the held-out pairs better is used, unless the settings name one.
    """
    wanted, pairs = settings.field, match.correspondences
    candidates = {"coherent": match.transform}
    asked = wanted.smoothing is not None or wanted.spacing is not None
    thin_plate = wanted.model == "thin-plate" or asked
    if match.model == "field" and (thin_plate or wanted.model == "auto"):
        kept = ~pairs.held_out
        fit = fit_field(
            pairs.fixed[kept],
            pairs.moving[kept],
            weight=pairs.weight[kept],
            smoothing=wanted.smoothing,
            spacing=wanted.spacing,
            domain=sources.fixed.image.grid.bounds,
        )
        candidates["thin-plate"] = fit.transform
        if thin_plate:
            del candidates["coherent"]
    losses = {name: _held_out_rms(pairs, t) for name, t in candidates.items()}
    name = min(losses, key=lambda n: (losses[n], n))
    transform = candidates[name]
    residual = np.linalg.norm(transform(pairs.fixed) - pairs.moving, axis=1)
    description = {
        "field": name if match.model == "field" else match.model,
        "held_out_rms_um": {n: loss for n, loss in losses.items() if math.isfinite(loss)},
    }
    folded = describe_field(transform, sources.fixed.image.grid)["fold_share"]
    warnings = []
    if folded > 0:
        warnings.append(
            f"warning: the field folds in {100 * folded:.2g} % of its cells; the registered image "
            "is not to be trusted there. Set match.beta to a larger width."
        )
    return Fit(transform, replace(pairs, residual=residual), description, warnings)


def _held_out_rms(pairs: Correspondences, transform: Transform) -> float:
    """Return the root mean square residual of held-out pairs, all pairs where none are."""
    rows = pairs.held_out if pairs.held_out.any() else np.ones(len(pairs), dtype=bool)
    gap = transform(pairs.fixed[rows]) - pairs.moving[rows]
    return float(np.sqrt((gap**2).sum(axis=1).mean()))


def median(values: NDArray[np.float64]) -> float | None:
    """Return the median of the numbers that are finite, None where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def write_registered(
    image: OmeZarrImage,
    grid: Grid,
    transform: Transform,
    location: str,
    settings: Settings,
    *,
    client: Client | None,
    progress: Progress,
    folder: RunFolder | None = None,
) -> None:
    """Write all wanted channels, all time points and all labels of an image on another grid.

    The image becomes valid when its last voxel is written.
    """
    channels = _channels(image, settings.warp.channels)
    _write_one(image, grid, transform, location, settings, channels, client, progress, folder)
    for name in image.labels:
        label = image.label(name)
        place = f"{location}/labels/{name}"
        _write_one(label, grid, transform, place, settings, None, client, progress, folder, name)


def write_replacing(
    image: OmeZarrImage,
    grid: Grid,
    transform: Transform,
    location: str | Path,
    settings: Settings,
    *,
    client: Client | None,
    progress: Progress,
    overwrite: bool,
) -> None:
    """Write as `write_registered` does, over an earlier OME-Zarr if allowed; leave no half."""
    place = Location.of(location)
    if place.exists():
        if not overwrite:
            raise OutputError(
                f"'{location}' exists already. Remove it, or allow it to be overwritten."
            )
        remove_store(location)
    try:
        write_registered(
            image, grid, transform, place.url, settings, client=client, progress=progress
        )
    except (TileregError, OSError):
        if place.exists():
            remove_store(location)
        raise


def _channels(image: OmeZarrImage, wanted: str | Sequence[int | str]) -> list[int]:
    """Return the numbers of the wanted channels."""
    if isinstance(wanted, str):
        return list(range(max(1, len(image.channels))))
    return [image.channel_index(channel) for channel in wanted]


def _write_one(
    image: OmeZarrImage,
    grid: Grid,
    transform: Transform,
    location: str,
    settings: Settings,
    channels: list[int] | None,
    client: Client | None,
    progress: Progress,
    folder: RunFolder | None,
    label: str | None = None,
) -> None:
    """Warp one image, or one label image, and build its pyramid."""
    output, chosen = settings.output, settings.warp
    picked = list(range(max(1, len(image.channels)))) if channels is None else channels
    resumed = folder is not None and folder.marked(f"create_{label or 'image'}") is not None
    writer = create_image(
        location,
        grid=grid,
        dtype=image.dtype,
        axes=image.axes,
        channels=tuple(image.channels[c] for c in picked) if image.channels else (),
        num_times=image.num_times,
        version=output.version,
        chunks=output.chunks,
        shards=output.shards,
        levels=output.levels,
        compression=output.compression,
        name=image.name,
        omero=image.omero,
        is_label=label is not None,
        overwrite=False,
        resume=resumed,
    )
    if folder is not None and not resumed:
        folder.mark(f"create_{label or 'image'}")
    title = "warp" if label is None else f"warp label {label}"
    num_times = max(1, image.num_times)
    plan = WarpPlan(
        transform=transform,
        grid=grid,
        moving_grid=image.grid,
        dtype=image.dtype,
        order=0 if label is not None else chosen.order,
        fill_value=0 if label is not None else chosen.fill_value,
    )
    warp_volume(
        image,
        writer,
        plan,
        channels=picked,
        times=range(num_times),
        client=client,
        progress=progress,
        title=title,
        finished=None if folder is None else folder.finished(f"units_{label or 'image'}"),
    )
    build_levels(
        writer, len(picked), num_times, client=client, progress=progress,
        title="pyramid" if label is None else f"pyramid of label {label}",
    )  # fmt: skip
    writer.finish()


def check_ndim(image: OmeZarrImage, transform: Transform, what: str) -> None:
    """Raise if an image and a transform differ in their number of axes.

    Raises
    ------
    InputError
        Naming both.
    """
    if image.ndim != transform.ndim:
        raise InputError(
            f"{what} '{image.location}' has {image.ndim} spatial axes, the transform has "
            f"{transform.ndim}. Use images of the kind that it was made from."
        )
