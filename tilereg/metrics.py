"""How good a registration is: field errors, image similarities, matches, folds.

The error of the recovered field is the judge. Image similarities stand beside it: they can
rise while the field gets no better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull, Delaunay

from tilereg.errors import InputError
from tilereg.image_metrics import (
    ImageScores,
    NccSums,
    iou_bright,
    mad_bright,
    match_rate,
    ncc,
    ssim,
)
from tilereg.points import check_points
from tilereg.volume_metrics import score_images, score_volumes

__all__ = [
    "FieldError",
    "ImageScores",
    "NccSums",
    "field_error",
    "fold_share",
    "hull_errors",
    "inside_hull",
    "iou_bright",
    "mad_bright",
    "match_rate",
    "ncc",
    "score_images",
    "score_volumes",
    "ssim",
]

PointMap = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_FLAT = 1e-9  # share of a cloud's size below which it has no extent along an axis


@dataclass(frozen=True, kw_only=True)
class FieldError:
    """Distances between where a transform puts points and where they belong."""

    count: int
    """Number of points."""
    median: float
    """Median distance in micrometre; NaN where there are no points, as all below."""
    p95: float
    """95th percentile in micrometre."""
    rms: float
    """Root mean square in micrometre."""
    max: float
    """Largest distance in micrometre."""
    median_voxels: float
    """Median distance in voxels, each axis divided by its spacing; NaN without a spacing."""
    p95_voxels: float
    """95th percentile in voxels."""
    rms_voxels: float
    """Root mean square in voxels."""
    max_voxels: float
    """Largest distance in voxels."""


def field_error(
    transform: PointMap,
    true_map: PointMap,
    points: ArrayLike,
    spacing: Sequence[float] | None = None,
) -> FieldError:
    """Compare a transform with the true map.

    Parameters
    ----------
    transform, true_map : callable
        Take (N, D) points in micrometre and return where they go, fixed to moving.
    points : (N, D) ndarray, micrometre
        Where to compare. Points that `true_map` sends to NaN (it has no answer there) are
        left out.
    spacing : (D,) floats, micrometre, optional
        Size of a voxel of the moving image, for the error in voxels.

    Raises
    ------
    InputError
        If `transform` returns a number that is not finite where `true_map` is finite.
    """
    at = check_points(points)
    truth = np.asarray(true_map(at), dtype=np.float64)
    known = np.isfinite(truth).all(axis=1)
    error = np.asarray(transform(at[known]), dtype=np.float64) - truth[known]
    if not np.isfinite(error).all():
        bad = int((~np.isfinite(error).all(axis=1)).sum())
        raise InputError(
            f"The transform sends {bad} of {len(error)} points to numbers that are not finite. "
            "A transform must be defined wherever it is judged."
        )
    scaled = error / spacing if spacing is not None else np.full_like(error, np.nan)
    world, voxels = _summary(error), _summary(scaled)
    return FieldError(
        count=len(error),
        median=world[0],
        p95=world[1],
        rms=world[2],
        max=world[3],
        median_voxels=voxels[0],
        p95_voxels=voxels[1],
        rms_voxels=voxels[2],
        max_voxels=voxels[3],
    )


def _summary(error: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return median, 95th percentile, root mean square and maximum of (N, D) vectors."""
    if len(error) == 0:
        return (np.nan,) * 4
    distance = np.linalg.norm(error, axis=1)
    return (
        float(np.median(distance)),
        float(np.percentile(distance, 95)),
        float(np.sqrt(np.mean(distance**2))),
        float(distance.max()),
    )


def hull_errors(
    transform: PointMap,
    true_map: PointMap,
    points: ArrayLike,
    hull_points: ArrayLike,
    spacing: Sequence[float] | None = None,
) -> tuple[FieldError, FieldError]:
    """Compare a transform with the true map inside and outside the hull of other points.

    Inside, the spots that were matched decide; outside, how the transform goes on.

    Parameters
    ----------
    transform, true_map, points, spacing
        As in `field_error`.
    hull_points : (M, D) ndarray, micrometre
        The matched spots, on the fixed side. Without any, all points are outside.

    Returns
    -------
    inside, outside : FieldError
    """
    at = check_points(points)
    inside = inside_hull(at, hull_points)
    return (
        field_error(transform, true_map, at[inside], spacing),
        field_error(transform, true_map, at[~inside], spacing),
    )


def inside_hull(points: ArrayLike, hull_points: ArrayLike) -> NDArray[np.bool_]:
    """Tell which points lie in the convex hull of others, its border included.

    A cloud that is flat, a line or a single point has a hull of that kind: a point is inside
    if it lies in the same plane, line or point, within 1e-9 of the cloud's size, and in the
    hull there. Without hull points nothing is inside.

    Parameters
    ----------
    points : (N, D) ndarray
    hull_points : (M, D) ndarray

    Returns
    -------
    (N,) ndarray of bool
    """
    queries, cloud = check_points(points), check_points(hull_points, "hull points")
    if queries.shape[1] != cloud.shape[1]:
        raise InputError(
            f"Points have {queries.shape[1]} axes and hull points {cloud.shape[1]}. "
            "Both must have the same."
        )
    if len(cloud) == 0:
        return np.zeros(len(queries), dtype=np.bool_)
    centre = cloud.mean(axis=0)
    cloud, queries = cloud - centre, queries - centre
    scale = float(np.abs(cloud).max()) or 1.0
    deviation = np.zeros(cloud.shape[1])
    _, singular, axes = np.linalg.svd(np.linalg.qr(cloud, mode="r"), full_matrices=True)
    deviation[: len(singular)] = singular / np.sqrt(len(cloud))
    extended = deviation > _FLAT * scale
    normal, basis = axes[~extended].T, axes[extended].T
    flat = np.abs(queries @ normal).max(axis=1, initial=0) <= _FLAT * scale
    inside = _inside_solid_hull(queries @ basis / scale, cloud @ basis / scale)
    return np.asarray(flat & inside)


def _inside_solid_hull(
    queries: NDArray[np.float64], cloud: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell which (N, R) points are in the hull of (M, R) points of full rank R, 0 to 3."""
    rank = cloud.shape[1]
    if rank == 0:
        return np.ones(len(queries), dtype=np.bool_)
    if rank == 1:
        low, high = cloud.min() - _FLAT, cloud.max() + _FLAT
        return np.asarray((queries[:, 0] >= low) & (queries[:, 0] <= high))
    # Only the corners matter: their triangulation is small even for a million points.
    corners = cloud[ConvexHull(cloud).vertices]
    return np.asarray(Delaunay(corners).find_simplex(queries, tol=_FLAT) >= 0)


def fold_share(jacobian: ArrayLike) -> float:
    """Return the share of places where a map folds: its Jacobian determinant is not positive.

    Parameters
    ----------
    jacobian : (..., D, D) ndarray
        Derivatives of the map, one matrix a place.

    Returns
    -------
    float
        0 to 1; NaN for no places. A determinant that is NaN counts as a fold.
    """
    with np.errstate(invalid="ignore"):
        determinant = np.linalg.det(np.asarray(jacobian, dtype=np.float64))
    return float(np.mean(~(determinant > 0))) if determinant.size else float("nan")
