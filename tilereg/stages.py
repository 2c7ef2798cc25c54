"""The stages of a run between stores and algorithms: what is read, computed and written."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilereg.config import Settings
from tilereg.detector import Detector
from tilereg.errors import ImageError, InputError, RegistrationError
from tilereg.fields.judged import fit_judged
from tilereg.fields.model import FieldModel
from tilereg.grid import Grid
from tilereg.io.ome_zarr import OmeZarrImage, ZarrReader
from tilereg.io.stores import Location
from tilereg.io.transforms import read_affine
from tilereg.lazy.detect import detect_volume
from tilereg.matching import Match, match_spots
from tilereg.matching.landmarks import judge_landmarks
from tilereg.points import Correspondences, Landmarks, Spots
from tilereg.progress import Progress
from tilereg.quality import describe_field
from tilereg.spots import plan_detector
from tilereg.transform import Affine, Transform
from tilereg.windows import Window, num_windows

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
    "fingerprint",
    "first_affine",
    "fit_transform",
    "match_clouds",
    "median",
    "plan_source",
    "transform_at",
]

TRANSFORM = "transform.ome.zarr"

_FEWEST_SPOTS = 4
_DETECT_VOXELS = 4_000_000
_MOST_DETECT_VOXELS = 32_000_000
_SAMPLES, _SAMPLE_SIDE = 8, 64
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

    def nearest(self, grid: Grid) -> ZarrReader:
        """Return the level whose voxels are most like those of a grid."""
        wanted = np.log(grid.spacing)
        gaps = [np.abs(np.log(v.grid.spacing) - wanted).sum() for v in self.image.levels]
        level = int(np.argmin(gaps))
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


def fingerprint(image: OmeZarrImage) -> str:
    """Return a short text that changes with the metadata of an image, and with its voxels.

    Of the voxels, a few blocks are looked at, spread over channels, times and the volume.
    """
    levels = [(v.shape, v.grid.spacing, v.grid.origin, str(v.dtype)) for v in image.levels]
    digest = hashlib.sha256(repr((image.axes, image.channels, image.labels, levels)).encode())
    chunks = image.levels[0].chunks
    num_chunks = num_windows(image.grid.shape, chunks)
    num_volumes = len(image.channels) * image.num_times
    picked = np.unique(np.linspace(0, num_volumes * num_chunks - 1, _SAMPLES).astype(np.int64))
    for number in picked.tolist():
        volume, chunk = divmod(number, num_chunks)
        time, channel = divmod(volume, len(image.channels))
        window = _part_of_chunk(image.grid.shape, chunks, chunk)
        digest.update(image.reader(channel=channel, time=time).read(window).tobytes())
    return digest.hexdigest()[:16]


def _part_of_chunk(shape: tuple[int, ...], chunks: tuple[int, ...], number: int) -> Window:
    """Return the first voxels of a chunk, given by its rank."""
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    start = tuple(int(i) * c for i, c in zip(np.unravel_index(number, counts), chunks, strict=True))
    size = (min(c, _SAMPLE_SIDE) for c in chunks)
    return Window(start, tuple(a + n for a, n in zip(start, size, strict=True))).clip(shape)


def detect_chunks(reader: ZarrReader) -> tuple[int, ...]:
    """Return the block of a detection task: some million voxels, whole storage chunks if it can.

    Small chunks are put together, the shortest side first, so that the halo costs least. Very
    large ones are cut: a block takes several times the memory of its voxels.
    """
    shape = reader.shape
    block = [min(c, n) for c, n in zip(reader.chunks, shape, strict=True)]
    while math.prod(block) < _DETECT_VOXELS and block != list(shape):
        axis = min((a for a, n in enumerate(shape) if block[a] < n), key=lambda a: block[a])
        block[axis] = min(2 * block[axis], shape[axis])
    while math.prod(block) > _MOST_DETECT_VOXELS:
        axis = max(range(len(block)), key=lambda a: block[a])
        block[axis] = -(-block[axis] // 2)
    return tuple(block)


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
    chunks = detect_chunks(reader)
    try:
        with progress.stage(f"{name}, size and threshold"):
            detector = plan_source(source, settings)
        with progress.stage(name, num_windows(reader.shape, chunks)) as stage:
            spots = detect_volume(
                reader,
                reader.grid,
                detector,
                chunks,
                client=client,
                progress=lambda *_: stage.advance(),
            )
    except ImageError as error:
        if source.image.location in str(error):
            raise
        # The detector sees arrays: of which image, only this place knows.
        raise ImageError(f"In {source}: {error}") from error
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


def first_affine(
    initial: str | Path | Affine | None, settings: Settings, ndim: int
) -> Affine | None:
    """Return the affine to start from, None for a search.

    Raises
    ------
    InputError
        If it cannot be read, or has another number of axes.
    """
    method, source = settings.initial.method, initial
    if source is None and method == "none":
        return Affine.identity(ndim)
    if source is None:
        source = settings.initial.file
    if source is None:
        return None
    affine = source if isinstance(source, Affine) else read_affine(transform_at(source))
    if len(affine.offset) != ndim:
        what = "The initial affine" if isinstance(source, Affine) else f"The affine in '{source}'"
        raise InputError(
            f"{what} has {len(affine.offset)} axes, the data have {ndim}. Give one of {ndim} axes."
        )
    return affine


def transform_at(place: str | Path) -> str:
    """Return the location of a transform, given itself or its run's folder."""
    location = Location.of(place)
    return location.child(TRANSFORM).url if TRANSFORM in location.listing() else location.url


def match_clouds(
    fixed: Spots,
    moving: Spots,
    settings: Settings,
    start: Affine | None,
    domain: Grid | None,
    landmarks: Landmarks | None = None,
) -> Match:
    """Match two clouds of spots as the settings say; the field may vary over `domain`."""
    chosen, wanted = settings.match, settings.field
    rotation = settings.initial.max_rotation
    return match_spots(
        fixed,
        moving,
        method=chosen.method,
        field="auto" if wanted.fitted is not None else wanted.model,
        initial=start,
        max_rotation=180.0 if rotation is None else rotation,
        w=chosen.w,
        beta=chosen.beta,
        held_out=chosen.held_out,
        domain=None if domain is None else domain.bounds,
        max_iterations=chosen.max_iterations,
        seed=chosen.seed,
        seams=chosen.seams,
        landmarks=landmarks,
    )


@dataclass(frozen=True)
class Fit:
    """The transform that is used, the one that was judged, and why this one."""

    transform: Transform
    judge: Transform
    matches: Correspondences
    description: dict[str, Any]
    landmarks: Landmarks | None = None
    warnings: list[str] = field(default_factory=list)


def fit_transform(match: Match, grid: Grid, settings: Settings) -> Fit:
    """Take the field of the matching, or fit the model that the settings name.

    Like the field of the matching, it is fitted to all pairs, and one without the held-out pairs
    is judged by them.
    """
    wanted, pairs = settings.field, match.correspondences
    name = str(match.details.get("field") or match.model)
    if match.model == "field" and wanted.fitted is not None:
        fit = _fit_wanted(match, wanted.fitted, grid)
    else:
        losses = dict(match.details.get("held_out_rms_um", {}))
        if not losses and pairs.held_out.any():
            losses[name] = float(np.sqrt((pairs.residual[pairs.held_out] ** 2).mean()))
        told = {"field": name, "held_out_rms_um": losses}
        fit = Fit(match.transform, match.judge, pairs, told, match.landmarks)
    warnings = [f"warning: {line}" for line in match.warnings]
    folded = describe_field(fit.transform, grid)["fold_share"]
    if folded > 0:
        warnings.append(
            f"warning: the field folds in {100 * folded:.2g} % of its cells; the registered image "
            "is not to be trusted there. Set match.beta to a larger width."
        )
    if wanted.model not in ("auto", "coherent") and match.model != "field":
        warnings.append(
            f"note: the held-out pairs are predicted best by a map that is {match.model} alone, so "
            f"no {wanted.model} field was fitted"
        )
    elif wanted.model == "kriging" and name != "kriging":
        warnings.append(f"note: {len(pairs)} pairs are too few for a kriging field")
    return replace(fit, warnings=warnings)


def _fit_wanted(match: Match, model: FieldModel, grid: Grid) -> Fit:
    """Fit a model to all pairs, and to the landmarks, which are told with their residuals anew."""
    pairs, known = match.correspondences, match.landmarks
    every = pairs if known is None else pairs.beside(known.as_pairs())
    found = fit_judged(every, model, grid.bounds)
    transform, matches = found.fit.transform, found.pairs.take(np.arange(len(pairs)))
    if known is not None:
        known = judge_landmarks(known, transform, matches)
    return Fit(transform, found.judge, matches, found.description, known)


def median(values: NDArray[np.float64]) -> float | None:
    """Return the median of the numbers that are finite, None where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


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
