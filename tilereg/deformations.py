"""Smooth maps in closed form, with derivatives and inverse: the truth of synthetic data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Deformation", "GaussianBumps", "PolynomialField", "invert"]

_BATCH = 65_536  # points evaluated at once, so that (N, B, D) stays small


class Deformation(Protocol):
    """A map of points with derivatives."""

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, D) points."""

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, D, D) derivatives at (N, D) points."""


@dataclass(frozen=True, eq=False)
class GaussianBumps:
    """An affine map and Gaussian bumps: ``A x + b + sum_k a_k exp(-|x - c_k|^2 / 2 R_k^2)``.

    Parameters
    ----------
    matrix : (D, D) ndarray
        A.
    offset : (D,) ndarray
        b, in the points' unit, as are all below.
    centres : (B, D) ndarray
        c.
    amplitudes : (B, D) ndarray
        a, the displacement at the centre of each bump.
    widths : (B,) ndarray
        R.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]
    centres: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    widths: NDArray[np.float64]

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, D) points."""
        array = np.asarray(points, dtype=np.float64)
        return np.asarray(array @ self.matrix.T + self.offset + self.displacement(array))

    def displacement(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, D) displacement of the bumps alone."""
        array = np.asarray(points, dtype=np.float64)
        result = np.empty_like(array)
        for i in range(0, len(array), _BATCH):
            result[i : i + _BATCH] = self._weights(array[i : i + _BATCH])[0] @ self.amplitudes
        return result

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, D, D) derivatives at (N, D) points."""
        array = np.asarray(points, dtype=np.float64)
        result = np.empty((*array.shape, array.shape[1]))
        for i in range(0, len(array), _BATCH):
            weight, gap = self._weights(array[i : i + _BATCH])
            slope = -weight[..., None] * gap / self.widths[:, None] ** 2
            result[i : i + _BATCH] = np.einsum("kd,nke->nde", self.amplitudes, slope)
        return result + self.matrix

    def bounds(self, low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], ...]:
        """Return a box (two corners) that holds what the map makes of a box."""
        box = np.array([low, high], dtype=np.float64)
        moved = _corners(box) @ self.matrix.T + self.offset
        # Each bump is highest at the box's nearest point to its centre and lowest at its farthest.
        near = np.clip(self.centres, *box) - self.centres
        far = np.abs(box[:, None] - self.centres).max(axis=0)
        weights = np.exp(
            -0.5 * (np.stack([near, far]) ** 2).sum(axis=-1, keepdims=True)
            / self.widths[:, None] ** 2
        )  # fmt: skip
        pushes = weights * self.amplitudes
        return (
            moved.min(axis=0) + pushes.min(axis=0).sum(axis=0),
            moved.max(axis=0) + pushes.max(axis=0).sum(axis=0),
        )

    def inverse(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, D) points that the map sends to these; NaN where none is found."""
        array = np.asarray(points, dtype=np.float64)
        guess = np.linalg.solve(self.matrix, (array - self.offset).T).T
        return invert(self, array, np.asarray(guess, dtype=np.float64))

    def _weights(
        self, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (N, B) Gaussians and (N, B, D) distances from the centres."""
        gap = points[:, None, :] - self.centres
        return np.exp(-0.5 * (gap**2).sum(axis=-1) / self.widths**2), gap


@dataclass(frozen=True, eq=False)
class PolynomialField:
    """The map ``x + d(x)``, d a polynomial of the position in a volume.

    ``d_i = sum_j c_ij p_j`` with p = (1, x, y, z, x y, y z), the coordinates normalised to
    -1..1 over the volume (0 along an axis of one voxel).

    Parameters
    ----------
    coefficients : (3, 6) ndarray, voxels
        c, a row an axis z, y, x.
    shape : (3,) tuple of int
        The volume's shape.
    """

    coefficients: NDArray[np.float64]
    shape: tuple[int, ...]

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, 3) voxel indices."""
        array = np.asarray(points, dtype=np.float64)
        return np.asarray(array + self.basis(array) @ self.coefficients.T)

    def basis(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, 6) polynomials at (N, 3) voxel indices."""
        z, y, x = (np.asarray(points, dtype=np.float64) * self.scale - self.shift).T
        return np.stack([np.ones_like(x), x, y, z, x * y, y * z], axis=-1)

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the (N, 3, 3) derivatives at (N, 3) voxel indices."""
        z, y, x = (np.asarray(points, dtype=np.float64) * self.scale - self.shift).T
        zero, one = np.zeros_like(x), np.ones_like(x)
        slopes = np.stack(
            [
                np.stack([zero, zero, zero, one, zero, y], axis=-1) * self.scale[0],
                np.stack([zero, zero, one, zero, x, z], axis=-1) * self.scale[1],
                np.stack([zero, one, zero, zero, y, zero], axis=-1) * self.scale[2],
            ],
            axis=-1,
        )
        return np.asarray(np.eye(3) + np.einsum("dj,nje->nde", self.coefficients, slopes))

    def bounds(self, low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], ...]:
        """Return the smallest box (two corners) that holds what the map makes of a box."""
        # The map is linear in each coordinate: its largest and smallest values are at corners.
        moved = self(_corners(np.array([low, high], dtype=np.float64)))
        return moved.min(axis=0), moved.max(axis=0)

    @property
    def scale(self) -> NDArray[np.float64]:
        """What an index is multiplied by to span two over the volume."""
        return np.array([2 / (n - 1) if n > 1 else 0.0 for n in self.shape])

    @property
    def shift(self) -> NDArray[np.float64]:
        """What is subtracted then."""
        return np.array([1.0 if n > 1 else 0.0 for n in self.shape])


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (2^D, D) corners of a box, given as (2, D)."""
    return np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, box.shape[1])


def invert(
    deformation: Deformation,
    targets: NDArray[np.float64],
    guess: NDArray[np.float64],
    *,
    max_steps: int = 60,
) -> NDArray[np.float64]:
    """Find the points that a map sends to `targets`, by damped Newton steps.

    Parameters
    ----------
    deformation : Deformation
    targets, guess : (N, D) ndarray
        Where the points must arrive, and where the search begins.
    max_steps : int

    Returns
    -------
    (N, D) ndarray
        Right to 1e-12 of the largest coordinate; NaN where the search did not get there. Where
        the map folds there are several answers, and this is the one that `guess` leads to.
    """
    points = np.array(guess, dtype=np.float64)
    residual = deformation(points) - targets
    distance = np.linalg.norm(residual, axis=1)
    tolerance = 1e-12 * float(np.abs(targets).max(initial=0.0))
    damping = np.ones(len(points))
    for _ in range(max_steps):
        todo = np.flatnonzero((distance > tolerance) & (damping > 1e-4))
        if todo.size == 0:
            break
        step = _newton_step(deformation.jacobian(points[todo]), residual[todo])
        trial = points[todo] - damping[todo, None] * step
        trial_residual = deformation(trial) - targets[todo]
        trial_distance = np.linalg.norm(trial_residual, axis=1)
        closer = trial_distance < distance[todo]
        moved = todo[closer]
        points[moved], residual[moved] = trial[closer], trial_residual[closer]
        distance[moved] = trial_distance[closer]
        damping[todo] = np.where(closer, np.minimum(1.0, 2 * damping[todo]), damping[todo] / 2)
    points[distance > tolerance] = np.nan
    return points


def _newton_step(
    jacobian: NDArray[np.float64], residual: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (N, D) solutions of N equations; of those that are singular, the shortest ones."""
    size = np.linalg.norm(jacobian, axis=(1, 2)) ** jacobian.shape[1]
    regular = np.abs(np.linalg.det(jacobian)) > 1e-12 * size
    step = np.empty_like(residual)
    step[regular] = np.linalg.solve(jacobian[regular], residual[regular, :, None])[..., 0]
    step[~regular] = (np.linalg.pinv(jacobian[~regular]) @ residual[~regular, :, None])[..., 0]
    return step
