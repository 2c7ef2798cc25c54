"""How alike two images are: correlation, structure, bright voxels, bright components.

These stand beside the error of the field, which is the judge: they can rise while the field
gets no better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity

from tilereg.errors import InputError

__all__ = [
    "ImageScores",
    "NccSums",
    "iou_bright",
    "mad_bright",
    "match_rate",
    "ncc",
    "ssim",
]

BRIGHTEST = 99.5  # percentile above which components are matched
REACH = 2.0  # voxels, the largest distance of a matched pair


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How alike an image is to the reference, by every measure."""

    ncc: float
    """Normalised cross-correlation over all voxels, see `ncc`."""
    ssim: float
    """Mean structural similarity, see `ssim`."""
    iou_99: float
    """Intersection over union of the voxels above each image's 99th percentile."""
    iou_995: float
    """The same for the 99.5th percentile."""
    mad_bright: float
    """Mean absolute difference of bright pixels of maximum projections, see `mad_bright`."""
    match_rate: float
    """Share of the reference's bright components that the image has, see `match_rate`."""


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
    span = float(np.ptp(x)) if x.size else 0.0
    window = ssim_window(x.shape, span)
    return float(structural_similarity(x, y, win_size=window, data_range=span))


def ssim_window(shape: tuple[int, ...], span: float) -> int:
    """Return the voxels an axis of the window of `ssim`, or say that there can be none.

    Parameters
    ----------
    shape : tuple of int
        Without axes of one voxel.
    span : float
        Range of the reference.
    """
    shortest = min(shape, default=0)
    if shortest < 3 or span == 0:
        raise InputError(
            f"Structural similarity needs three voxels an axis and a reference that is not "
            f"constant; the shape is {shape} and the reference's range {span}."
        )
    return min(7, shortest - (shortest + 1) % 2)


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
    earlier = image if before is None else before
    return mad_of_projections(*(_projection(each) for each in (reference, image, earlier)))


def _projection(image: ArrayLike) -> NDArray[Any]:
    """Return the maximum projection along z."""
    array = np.asarray(image)
    return np.asarray(array.max(axis=0) if array.ndim == 3 else array)


def mad_of_projections(reference: NDArray[Any], image: NDArray[Any], before: NDArray[Any]) -> float:
    """Return `mad_bright` of images whose (Y, X) maximum projections are these."""
    fixed, now, earlier = (_relative(each) for each in (reference, image, before))
    brightest = np.maximum(fixed, earlier)
    mask = brightest > np.percentile(brightest, 90)
    return float(np.abs(fixed - now)[mask].mean()) if mask.any() else float("nan")


def _relative(projection: NDArray[Any]) -> NDArray[np.float64]:
    """Return a projection divided by its largest value."""
    flat = np.asarray(projection, dtype=np.float64)
    largest = flat.max()
    return np.asarray(flat / largest if largest > 0 else flat)


def match_rate(
    reference: ArrayLike, image: ArrayLike, percentile: float = BRIGHTEST, distance: float = REACH
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
    return matched_share(_centroids(reference, percentile), _centroids(image, percentile), distance)


def matched_share(
    fixed: NDArray[np.float64], moving: NDArray[np.float64], distance: float
) -> float:
    """Return the share of (N, D) centroids that find one of (M, D) others, as `match_rate`."""
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
    array = np.asarray(image, dtype=np.float64)
    labels, count = ndimage.label(array > np.percentile(array, percentile))
    if count == 0:
        return np.empty((0, array.ndim))
    centres = ndimage.center_of_mass(
        np.ones(array.shape, np.uint8), labels, np.arange(1, count + 1)
    )
    return np.asarray(centres, dtype=np.float64).reshape(count, array.ndim)


def _pair(a: Any, b: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two images in float64, or say that their shapes differ."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise InputError(f"Shapes {x.shape} and {y.shape} differ. Compare images on one grid.")
    return x, y
