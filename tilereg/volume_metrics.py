"""The measures of `tilereg.image_metrics` for volumes that are read block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.components import BlockComponents, block_components, joined_centroids
from tilereg.errors import InputError
from tilereg.image_metrics import (
    BRIGHTEST,
    REACH,
    ImageScores,
    NccSums,
    mad_of_projections,
    matched_share,
    ssim_window,
)
from tilereg.kernels.similarity import similarity_sum
from tilereg.percentiles import RankSearch, percentile_ranks, percentile_value
from tilereg.windows import Reader, Window, iter_windows

__all__ = ["Sliceable", "score_images", "score_volumes"]

_BLOCK = {2: (1024, 1024), 3: (64, 128, 128)}
_PERCENTILES = (99.0, BRIGHTEST)


class Sliceable(Protocol):
    """What is read by slices as a numpy array is: an array of zarr, HDF5 or dask, a memory map."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of voxels an axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a voxel."""

    def __getitem__(self, key: tuple[slice, ...], /) -> Any:
        """Return the voxels of a box."""


def score_images(
    reference: ArrayLike, image: ArrayLike, before: ArrayLike | None = None
) -> ImageScores:
    """Compare an image with the reference by every measure.

    Parameters
    ----------
    reference, image : (Z, Y, X) or (Y, X) ndarray
        Two images of one shape, of integers or floats.
    before : ndarray, optional
        The moving image before registration, for the mask of `mad_bright`. Default: `image`.

    Raises
    ------
    InputError
        As `score_volumes`, which this is for arrays.
    """
    return score_volumes(
        np.asarray(reference), np.asarray(image), None if before is None else np.asarray(before)
    )


def score_volumes(
    reference: Reader | Sliceable,
    image: Reader | Sliceable,
    before: Reader | Sliceable | None = None,
    *,
    block: Sequence[int] | None = None,
) -> ImageScores:
    """Compare a volume with the reference by every measure, block by block.

    The results are those of the functions of `tilereg.metrics` that `ImageScores` names, to 1e-9,
    and exactly so of the measures that count: the intersections over unions and the match rate.

    Parameters
    ----------
    reference, image : Reader or sliceable
        Two images of one shape, of integers or floats.
    before : Reader or sliceable, optional
        The moving image before registration, for the mask of `mad_bright`. Default: `image`.
    block : (D,) ints, voxels, optional
        How much is read at once. Default 64 x 128 x 128. Chunks of the store are best.

    Raises
    ------
    InputError
        If the shapes differ, the reference is constant, an axis has two voxels, a voxel is not
        finite or its type is no number.

    Notes
    -----
    Each volume is read twice; of four bytes a voxel three times, of eight bytes five times.
    Memory is some 60 bytes a voxel of a block, 40 a pixel of a plane and 100 a bright component.
    """
    volumes = [reference, image] if before is None else [reference, image, before]
    shapes = [tuple(volume.shape) for volume in volumes]
    if len(set(shapes)) > 1:
        raise InputError(f"Shapes {shapes} differ. Compare images on one grid.")
    if len(shapes[0]) not in _BLOCK or min(shapes[0]) < 1:
        raise InputError(f"Invalid shape {shapes[0]} of volumes. Two or three axes are needed.")
    blocks = _BLOCK[len(shapes[0])] if block is None else tuple(block)
    first = _first_reading(volumes, blocks)
    thresholds = [
        _thresholds(volume, search, blocks)
        for volume, search in zip(volumes[:2], first.searches, strict=True)
    ]
    second = _second_reading(volumes[:2], blocks, thresholds, first.span)
    projections = first.projections
    fixed, moving = second.centroids
    return ImageScores(
        ncc=first.sums.ncc,
        ssim=second.ssim,
        iou_99=second.ious[0],
        iou_995=second.ious[1],
        mad_bright=mad_of_projections(projections[0], projections[1], projections[-1]),
        match_rate=matched_share(fixed, moving, REACH),
    )


@dataclass(frozen=True, kw_only=True)
class _First:
    """What the first reading tells: `projections` of all volumes, `span` of the reference."""

    sums: NccSums
    span: float
    projections: list[NDArray[Any]]
    searches: list[RankSearch]


@dataclass(frozen=True, kw_only=True)
class _Second:
    """What the second reading tells; `centroids` of the reference and of the image."""

    ssim: float
    ious: list[float]
    centroids: list[NDArray[np.float64]]


def _first_reading(volumes: list[Reader | Sliceable], blocks: tuple[int, ...]) -> _First:
    """Read all volumes once."""
    shape = volumes[0].shape
    sums, low, high = NccSums(), np.inf, -np.inf
    searches = [_search(volume) for volume in volumes[:2]]
    counts = [search.counts() for search in searches]
    projections = [np.full(shape[-2:], _lowest(volume.dtype)) for volume in volumes]
    for unit in iter_windows(shape, blocks):
        parts = [_read(volume, unit.window) for volume in volumes]
        _check_finite(parts, unit.window)
        sums = sums.add(parts[0], parts[1])
        low, high = min(low, float(parts[0].min())), max(high, float(parts[0].max()))
        for search, part, count in zip(searches, parts, counts, strict=False):
            search.add(part, count)
        for projection, part in zip(projections, parts, strict=True):
            view = projection[unit.window.slices[-2:]]
            np.maximum(view, part.max(axis=0) if part.ndim == 3 else part, out=view)
    return _First(
        sums=sums,
        span=high - low,
        projections=projections,
        searches=[s.narrow(count) for s, count in zip(searches, counts, strict=True)],
    )


def _second_reading(
    volumes: list[Reader | Sliceable],
    blocks: tuple[int, ...],
    thresholds: list[tuple[float, ...]],
    span: float,
) -> _Second:
    """Read two volumes once more, blocks with the halo of the structural similarity."""
    shape = tuple(volumes[0].shape)
    width = ssim_window(tuple(n for n in shape if n > 1), span)
    size = tuple(width if n > 1 else 1 for n in shape)
    halo = tuple(n // 2 for n in size)
    middle = Window.whole(shape).pad(tuple(-h for h in halo))
    total, both, either = 0.0, np.zeros(2), np.zeros(2)
    components: list[list[BlockComponents]] = [[], []]
    for unit in iter_windows(shape, blocks):
        outer = unit.window.pad(halo).clip(shape)
        core = unit.window.relative_to(outer).slices
        parts = [_read(volume, outer) for volume in volumes]
        kept = unit.window.intersect(middle)
        if not kept.is_empty:
            around = kept.pad(halo).relative_to(outer).slices
            total += _ssim_sum([part[around] for part in parts], size, span)
        for i in range(len(_PERCENTILES)):
            bright = [p[core] > t[i] for p, t in zip(parts, thresholds, strict=True)]
            both[i] += np.count_nonzero(bright[0] & bright[1])
            either[i] += np.count_nonzero(bright[0] | bright[1])
        # The last percentile is the one whose components are matched.
        for found, mask in zip(components, bright, strict=True):
            found.append(block_components(mask, unit.window, shape))
    return _Second(
        ssim=total / middle.size,
        ious=[float(b / e) if e else float("nan") for b, e in zip(both, either, strict=True)],
        centroids=[joined_centroids(found, shape) for found in components],
    )


def _ssim_sum(parts: list[NDArray[Any]], size: tuple[int, ...], span: float) -> float:
    """Return the sum of the structural similarity wherever the window fits into two blocks."""
    # A plane is a volume with one z.
    plane = (1,) * (3 - len(size))
    x, y = (np.ascontiguousarray(part).reshape(plane + part.shape) for part in parts)
    depth, height, width = plane + size
    constants = (0.01 * span) ** 2, (0.03 * span) ** 2
    sums, row = np.empty((5, *x.shape[1:])), np.empty((5, x.shape[2]))
    return float(similarity_sum(x, y, (depth, height, width), constants, sums, row))


def _search(volume: Reader | Sliceable) -> RankSearch:
    """Return the search for the thresholds of a volume."""
    size = math.prod(volume.shape)
    ranks = [rank for percentile in _PERCENTILES for rank in percentile_ranks(size, percentile)]
    return RankSearch.begin(volume.dtype, ranks)


def _thresholds(
    volume: Reader | Sliceable, search: RankSearch, blocks: tuple[int, ...]
) -> tuple[float, ...]:
    """Return the percentiles of a volume; read it for the digits that are not known yet."""
    while not search.is_done:
        counts = search.counts()
        for unit in iter_windows(volume.shape, blocks):
            search.add(_read(volume, unit.window), counts)
        search = search.narrow(counts)
    size = math.prod(volume.shape)
    ends = search.values.reshape(-1, 2).tolist()
    return tuple(
        percentile_value(size, percentile, *end)
        for percentile, end in zip(_PERCENTILES, ends, strict=True)
    )


def _read(volume: Reader | Sliceable, window: Window) -> NDArray[Any]:
    """Read the voxels of a window."""
    read = getattr(volume, "read", None)
    if read is not None:
        return np.asarray(read(window))
    return np.asarray(cast(Sliceable, volume)[window.slices])


def _check_finite(parts: list[NDArray[Any]], window: Window) -> None:
    """Raise if a block of a volume holds a voxel that is not finite."""
    for part in parts:
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise InputError(
                f"Voxels in {window.start}..{window.stop} are not finite. Replace them before "
                "volumes are compared."
            )


def _lowest(dtype: np.dtype[Any]) -> Any:
    """Return the smallest value of a type, in that type."""
    if dtype.kind == "b":
        return np.False_
    return dtype.type(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min)
