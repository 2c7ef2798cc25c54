"""How good a registration is, from what did not enter it, as plain numbers for ``qc.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2

from tilereg.grid import Grid
from tilereg.matching import Match
from tilereg.metrics import NccSums
from tilereg.points import Correspondences, Landmarks, Spots
from tilereg.transform import Transform
from tilereg.warping import source_window, warp_block
from tilereg.windows import Reader, Window

__all__ = [
    "correlation",
    "describe_field",
    "describe_landmarks",
    "describe_match",
    "describe_regions",
    "describe_residuals",
    "describe_support",
    "list_warnings",
]

Floats = NDArray[np.float64]

_MOST_SAMPLES = 200_000
_BLOCK = {2: (512, 512), 3: (64, 128, 128)}
_MOST_BLOCKS = 64
_SPOTS_A_REGION = 40
_UNLIKELY = 1e-4


def describe_match(match: Match, num_fixed: int, num_moving: int) -> dict[str, Any]:
    """Return how many spots found a partner, and how many would by chance."""
    return {
        "status": match.status,
        "message": match.message,
        "pairs": int((match.correspondences.weight > 0).sum()),
        "share_matched": match.share_matched,
        "share_chance": match.share_chance,
        "share_of_moving_without_partner": match.w,
        "evidence_log10": _finite(match.evidence),
        "model": match.model,
        "beta_um": _finite(match.beta),
        "pair_sigma_um": _finite(match.residual_sigma),
        "num_fixed": num_fixed,
        "num_moving": num_moving,
        "details": plain(match.details),
    }


def describe_landmarks(landmarks: Landmarks) -> dict[str, Any]:
    """Return how a match obeys known pairs, and which of them the spots around contradict."""
    return {
        "count": len(landmarks),
        "contradicted": np.flatnonzero(landmarks.is_contradicted).tolist(),
        "weight": landmarks.weight.tolist(),
        "residual_um": landmarks.residual.tolist(),
        "miss_um": landmarks.miss.tolist(),
    }


def describe_residuals(
    pairs: Correspondences,
    transform: Transform,
    judge: Transform,
    fixed: Spots,
    moving: Spots,
    spacing: Floats,
) -> dict[str, Any]:
    """Return residuals of held-out and of fitted pairs, beside what localisation alone explains.

    Parameters
    ----------
    pairs : Correspondences
        Those of weight 0 have entered nothing, and count for nothing.
    transform : Transform
        Judged by the fitted pairs.
    judge : Transform
        The map that has not seen the held-out pairs, and is judged by them.
    fixed, moving : Spots
        The clouds that the pairs were chosen from.
    spacing : (D,) ndarray, micrometre
        Voxel of the moving image, for residuals in voxels.
    """
    is_used = pairs.weight > 0
    held_out, fitted = pairs.held_out & is_used, ~pairs.held_out & is_used
    gap = np.empty((len(pairs), len(spacing)))
    for rows, map_ in ((fitted, transform), (held_out, judge)):
        if rows.any():
            gap[rows] = map_(pairs.fixed[rows]) - pairs.moving[rows]
    ours, theirs = pairs.fixed_index[is_used], pairs.moving_index[is_used]
    both = np.hypot(fixed.localisation[ours], moving.localisation[theirs])
    known = both[np.isfinite(both)]
    # The median of the norm of D independent normal numbers of one deviation.
    to_median = math.sqrt(float(chi2.ppf(0.5, len(spacing))))
    floor = float(np.median(known)) * to_median if len(known) else math.nan
    told = _residual_row(gap[held_out], spacing)
    excess = math.nan
    if told["median_um"] is not None and math.isfinite(floor):
        excess = math.sqrt(max(told["median_um"] ** 2 - floor**2, 0.0))
    return {
        "held_out": told,
        "fitted": _residual_row(gap[fitted], spacing),
        "floor_um": _finite(floor),
        "excess_um": _finite(excess),
    }


def _residual_row(gap: Floats, spacing: Floats) -> dict[str, Any]:
    """Return count, median and 95th percentile of residual vectors, in both units."""
    if not len(gap):
        keys = ("median_um", "p95_um", "median_voxel", "p95_voxel")
        return {"count": 0, **dict.fromkeys(keys)}
    size, voxels = np.linalg.norm(gap, axis=1), np.linalg.norm(gap / spacing, axis=1)
    return {
        "count": len(gap),
        "median_um": float(np.median(size)),
        "p95_um": float(np.percentile(size, 95)),
        "median_voxel": float(np.median(voxels)),
        "p95_voxel": float(np.percentile(voxels, 95)),
    }


def describe_field(transform: Transform, grid: Grid) -> dict[str, Any]:
    """Return the size of the transform over the fixed grid, and where it folds.

    Cells are half a lattice spacing wide, wider where that makes more than 200,000 of them
    ('cell_um' says how wide); a cell counts as folded where the Jacobian determinant at its centre
    is not above zero.
    """
    low, high = grid.bounds
    points, cell = _cell_centres(low, high, transform)
    moved = transform(points)
    jacobian = np.linalg.det(transform.jacobian(points))
    shift = np.linalg.norm(moved - points, axis=1)
    field = (
        np.zeros(1) if transform.field is None else np.linalg.norm(transform.field(points), axis=1)
    )
    return {
        "affine_matrix": transform.affine.matrix.tolist(),
        "affine_offset_um": transform.affine.offset.tolist(),
        "lattice_nodes": None if transform.field is None else list(transform.field.nodes),
        "lattice_spacing_um": None if transform.field is None else transform.field.spacing.tolist(),
        "median_displacement_um": float(np.median(shift)),
        "max_displacement_um": float(shift.max()),
        "max_nonaffine_um": float(field.max()),
        "jacobian_min": float(jacobian.min()),
        "jacobian_max": float(jacobian.max()),
        "cells_checked": len(points),
        "cell_um": cell.tolist(),
        "fold_share": float((jacobian <= 0).mean()),
    }


def _cell_centres(low: Floats, high: Floats, transform: Transform) -> tuple[Floats, Floats]:
    """Return the centres and the size of cells half a lattice spacing wide, bounded in number."""
    extent = np.maximum(high - low, 0.0)
    step = extent / 16 if transform.field is None else transform.field.spacing / 2
    counts = np.maximum(1, np.ceil(extent / np.maximum(step, 1e-12))).astype(np.int64)
    while counts.prod() > _MOST_SAMPLES:
        counts = np.maximum(1, counts * 3 // 4)
    axes = [a + (np.arange(n) + 0.5) * e / n for a, e, n in zip(low, extent, counts, strict=True)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
    return centres, extent / counts


def describe_regions(
    points: Floats, has_partner: NDArray[np.bool_], share: float, chance: float
) -> dict[str, Any]:
    """Return where fixed spots find partners and where they do not.

    The residual of pairs says nothing of a region in which there are no pairs. The cloud is
    halved along its longest side until a region holds about forty spots; a region is without
    support where chance explains its partners and the share of all regions would be very
    unlikely (below 1e-4).

    Parameters
    ----------
    points : (N, D) ndarray, micrometre
        Fixed spots whose place lies inside of the moving image.
    has_partner : (N,) ndarray of bool
    share : float
        Share of all these spots with a partner.
    chance : float
        Share that chance gives.
    """
    regions = _halve(points, np.arange(len(points)))
    rows = []
    for members in regions:
        count, found = len(members), int(has_partner[members].sum())
        if binom.cdf(found, count, share) < _UNLIKELY and found <= count * (chance + share) / 2:
            low, high = points[members].min(axis=0), points[members].max(axis=0)
            rows.append({"low_um": low.tolist(), "high_um": high.tolist(), "spots": count,
                         "with_partner": found})  # fmt: skip
    shares = [float(has_partner[m].mean()) for m in regions]
    return {
        "regions": len(regions),
        "least_share": min(shares, default=None),
        "median_share": float(np.median(shares)) if shares else None,
        "without_support": rows,
    }


def _halve(points: Floats, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the rows of regions of some forty points, split at medians of the longest side."""
    if len(rows) < 2 * _SPOTS_A_REGION:
        return [rows] if len(rows) else []
    axis = int(np.argmax(np.ptp(points[rows], axis=0)))
    order = rows[np.argsort(points[rows, axis], kind="stable")]
    middle = len(order) // 2
    return _halve(points, order[:middle]) + _halve(points, order[middle:])


def describe_support(
    fixed: Spots,
    pairs: Correspondences,
    transform: Transform,
    moving_grid: Grid | None,
    chance: float,
    used: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Return the share of fixed spots with a partner, over all and by region.

    Only spots that the transform brings into the moving image count, of those that are `used` in
    the match. Of tables alone, without an image, all do.
    """
    inside = np.ones(len(fixed), dtype=bool)
    if moving_grid is not None:
        inside = moving_grid.contains(transform(fixed.positions))
    if used is not None:
        inside &= used
    has_partner = np.zeros(len(fixed), dtype=bool)
    has_partner[pairs.fixed_index] = True
    share = float(has_partner[inside].mean()) if inside.any() else 0.0
    regions = describe_regions(fixed.positions[inside], has_partner[inside], share, chance)
    return {"spots_inside": int(inside.sum()), "share_with_partner": share, **regions}


def list_warnings(
    field: dict[str, Any], support: dict[str, Any], seams: Sequence[dict[str, Any]] = ()
) -> list[str]:
    """Return what a user must know before the registered image is used, a sentence each."""
    lines = [
        f"The {seam['image']} image seems to be stitched with an error across {seam['axis']} = "
        f"{seam['position_um']:.4g} um: displacements jump by up to {seam['largest_um']:.3g} um. "
        "The registered image is not to be trusted next to this plane."
        for seam in seams
    ]
    if field["fold_share"] > 0:
        lines.append(
            f"The field folds in {100 * field['fold_share']:.2g} % of its cells; the registered "
            "image is not to be trusted there. Set match.beta to a larger width."
        )
    if support["without_support"]:
        regions = support["without_support"]
        spots = sum(region["spots"] for region in regions)
        lines.append(
            f"{len(regions)} of {support['regions']} regions, with {spots} of "
            f"{support['spots_inside']} fixed spots, hardly have partners; the transform is "
            "not to be trusted there. They are listed in qc.json (support.without_support)."
        )
    return lines


def correlation(
    fixed: Reader, fixed_grid: Grid, moving: Reader, moving_grid: Grid, transform: Transform
) -> dict[str, Any]:
    """Return the correlation of the images before and after, where both exist after warping.

    Read block by block; of large images some blocks spread over the volume are looked at.

    Returns
    -------
    dict
        'before' and 'after', null where nothing overlaps, the number of voxels compared, and the
        number of blocks.
    """
    identity = Transform.identity(transform.ndim)
    ones = np.ones((1,) * transform.ndim, dtype=np.uint8)
    before, after = NccSums(), NccSums()
    sides = np.array(_BLOCK[transform.ndim])
    counts = tuple(int(n) for n in -(-np.array(fixed_grid.shape) // sides))
    num_blocks = math.prod(counts)
    picked = np.unique(np.linspace(0, num_blocks - 1, min(num_blocks, _MOST_BLOCKS)).astype(int))
    for number in picked:
        start = np.array(np.unravel_index(number, counts)) * sides
        corner = tuple(int(s) for s in start)
        window = Window(corner, tuple(int(s) for s in start + sides)).clip(fixed_grid.shape)
        need = source_window(transform, fixed_grid, window, moving_grid, 1)
        if need.is_empty:
            continue
        cover = warp_block(
            np.broadcast_to(ones, need.shape), need, transform, fixed_grid, window, moving_grid,
            order=0,
        )  # fmt: skip
        if not cover.any():
            continue
        mask = cover > 0
        reference = fixed.read(window)
        for sums, map_ in (("before", identity), ("after", transform)):
            source = source_window(map_, fixed_grid, window, moving_grid, 1)
            values = moving.read(source)
            warped = warp_block(values, source, map_, fixed_grid, window, moving_grid, order=1)
            if sums == "before":
                before = before.add(reference, warped, mask)
            else:
                after = after.add(reference, warped, mask)
    return {
        "before": _finite(before.ncc),
        "after": _finite(after.ncc),
        "voxels": after.count,
        "blocks": len(picked),
        "blocks_of": num_blocks,
        "fixed_spacing_um": list(fixed_grid.spacing),
        "moving_spacing_um": list(moving_grid.spacing),
    }


def _finite(value: float) -> float | None:
    """Return a number that JSON can hold: very negative for -inf, None for NaN."""
    if math.isnan(value):
        return None
    return max(min(float(value), 1e308), -1e308)


def plain(value: Any) -> Any:
    """Return nested values as strict JSON has them: no NaN, no infinity, no types of numpy."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return _finite(value) if isinstance(value, float) else value
