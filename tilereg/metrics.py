"""How good a registration is: field errors, image similarities, matches, folds.

The error of the recovered field is the judge. Image similarities stand beside it: they can
rise while the field gets no better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, Delaunay, cKDTree
from skimage.metrics import structural_similarity

from tilereg.errors import InputError
from tilereg.points import check_points

__all__ = [
    "FieldError",
    "NccSums",
    "field_error",
    "fold_share",
    "inside_hull",
    "iou_bright",
    "mad_bright",
    "match_rate",
    "ncc",
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


@dataclass(frozen=True, kw_only=True)
class NccSums:
    """What must be known of two images to tell their correlation, gathered block by block.

    Blocks can be added and parts merged in any order; the result is that of the whole up to
    rounding. Means and central moments are kept, not plain sums, so that a large background
    does not cost digits.

    Examples
    --------
    >>> sums = NccSums().add([1.0, 2.0], [3.0, 5.0]).merge(NccSums().add([4.0], [9.0]))
    >>> round(sums.ncc, 12)
    1.0
    """

    count: int = 0
    """Number of voxels."""
    mean_a: float = 0.0
    """Mean of the first image."""
    mean_b: float = 0.0
    """Mean of the second image."""
    moment_aa: float = 0.0
    """Sum of squared deviations of the first image."""
    moment_bb: float = 0.0
    """Sum of squared deviations of the second image."""
    moment_ab: float = 0.0
    """Sum of products of deviations."""

    def add(self, a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None) -> NccSums:
        """Return the sums with the voxels of a block added, where `mask` is true."""
        x, y = _pair(a, b)
        keep = slice(None) if mask is None else np.asarray(mask, dtype=np.bool_)
        x, y = x[keep].ravel(), y[keep].ravel()
        if x.size == 0:
            return self
        mean_a, mean_b = float(x.mean()), float(y.mean())
        x, y = x - mean_a, y - mean_b
        block = NccSums(
            count=x.size,
            mean_a=mean_a,
            mean_b=mean_b,
            moment_aa=float(x @ x),
            moment_bb=float(y @ y),
            moment_ab=float(x @ y),
        )
        return self.merge(block)

    def merge(self, other: NccSums) -> NccSums:
        """Return the sums of both parts together (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        gap_a, gap_b = other.mean_a - self.mean_a, other.mean_b - self.mean_b
        weight = self.count * other.count / count
        return NccSums(
            count=count,
            mean_a=self.mean_a + gap_a * other.count / count,
            mean_b=self.mean_b + gap_b * other.count / count,
            moment_aa=self.moment_aa + other.moment_aa + gap_a * gap_a * weight,
            moment_bb=self.moment_bb + other.moment_bb + gap_b * gap_b * weight,
            moment_ab=self.moment_ab + other.moment_ab + gap_a * gap_b * weight,
        )

    @property
    def ncc(self) -> float:
        """The normalised cross-correlation, -1 to 1; NaN if an image is constant or empty."""
        scale = np.sqrt(self.moment_aa) * np.sqrt(self.moment_bb)
        if not scale > 0:
            return float("nan")
        return float(np.clip(self.moment_ab / scale, -1.0, 1.0))


def ncc(a: ArrayLike, b: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Return the zero-mean normalised cross-correlation of two images.

    Parameters
    ----------
    a, b : ndarray
        Two images of one shape.
    mask : ndarray of bool, optional
        Where to look. Default everywhere.

    Returns
    -------
    float
        -1 to 1; NaN if an image is constant in the mask.
    """
    return NccSums().add(a, b, mask).ncc


def ssim(reference: ArrayLike, image: ArrayLike) -> float:
    """Return the mean structural similarity (Wang et al. 2004).

    The window has 7 voxels an axis, or the largest odd number that fits the shortest axis;
    axes of one voxel are dropped. The data range is that of the reference.

    Raises
    ------
    InputError
        If an axis has two voxels, or the reference is constant.
    """
    x, y = _pair(np.squeeze(reference), np.squeeze(image))
    shortest = min(x.shape, default=0)
    span = float(np.ptp(x)) if x.size else 0.0
    if shortest < 3 or span == 0:
        raise InputError(
            f"Structural similarity needs three voxels an axis and a reference that is not "
            f"constant; the shape is {x.shape} and the reference's range {span}."
        )
    window = min(7, shortest - (shortest + 1) % 2)
    return float(structural_similarity(x, y, win_size=window, data_range=span))


def iou_bright(reference: ArrayLike, image: ArrayLike, percentile: float = 99.0) -> float:
    """Return intersection over union of the voxels above each image's own percentile.

    NaN if nothing is above it in either image.
    """
    x, y = _pair(reference, image)
    bright_x, bright_y = x > np.percentile(x, percentile), y > np.percentile(y, percentile)
    union = int((bright_x | bright_y).sum())
    return float((bright_x & bright_y).sum() / union) if union else float("nan")


def mad_bright(reference: ArrayLike, image: ArrayLike, before: ArrayLike | None = None) -> float:
    """Return the mean absolute difference of the bright pixels of maximum projections.

    3D images are projected along z, and every projection is divided by its own maximum. A
    pixel counts where the reference or `before` exceeds the 90th percentile of the larger of
    the two, pixel by pixel.

    Parameters
    ----------
    reference, image : ndarray
    before : ndarray, optional
        The moving image before registration. It goes into the mask, so that before and after
        are compared on the same pixels. Default: `image`.
    """
    fixed = _projection(reference)
    now = _projection(image)
    earlier = now if before is None else _projection(before)
    brightest = np.maximum(fixed, earlier)
    mask = brightest > np.percentile(brightest, 90)
    return float(np.abs(fixed - now)[mask].mean()) if mask.any() else float("nan")


def _projection(image: ArrayLike) -> NDArray[np.float64]:
    """Return the maximum projection along z, largest value 1."""
    array = np.asarray(image, dtype=np.float64)
    flat = array.max(axis=0) if array.ndim == 3 else array
    largest = flat.max()
    return np.asarray(flat / largest if largest > 0 else flat)


def match_rate(
    reference: ArrayLike, image: ArrayLike, percentile: float = 99.5, distance: float = 2.0
) -> float:
    """Return the share of the reference's bright components that the image has as well.

    Components are connected voxels above each image's own percentile. Their centroids are
    matched one to one, the closest pairs first.

    Parameters
    ----------
    reference, image : ndarray
    percentile : float
    distance : float, voxels
        Largest distance of a pair.

    Returns
    -------
    float
        0 to 1; NaN if the reference has no component.
    """
    fixed, moving = _centroids(reference, percentile), _centroids(image, percentile)
    if len(fixed) == 0:
        return float("nan")
    if len(moving) == 0:
        return 0.0
    pairs = cKDTree(fixed).sparse_distance_matrix(cKDTree(moving), distance, output_type="ndarray")
    taken_fixed, taken_moving = np.zeros(len(fixed), bool), np.zeros(len(moving), bool)
    for row in np.lexsort((pairs["j"], pairs["i"], pairs["v"])):
        i, j = pairs["i"][row], pairs["j"][row]
        if not (taken_fixed[i] or taken_moving[j]):
            taken_fixed[i] = taken_moving[j] = True
    return float(taken_fixed.mean())


def _centroids(image: ArrayLike, percentile: float) -> NDArray[np.float64]:
    """Return the (N, D) centres of the connected voxels above a percentile."""
    array = np.asarray(image)
    labels, count = ndimage.label(array > np.percentile(array, percentile))
    if count == 0:
        return np.empty((0, array.ndim))
    centres = ndimage.center_of_mass(
        np.ones(array.shape, np.uint8), labels, np.arange(1, count + 1)
    )
    return np.asarray(centres, dtype=np.float64).reshape(count, array.ndim)


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


def _pair(a: Any, b: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two images in float64, or say that their shapes differ."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise InputError(f"Shapes {x.shape} and {y.shape} differ. Compare images on one grid.")
    return x, y
