"""Maps from the fixed to the moving world: affine, lattice field, and their sum.

Only one direction is stored, the pull-back ``x_moving = A x_fixed + b + u(x_fixed)``, which is
what resampling needs. All positions are in micrometre, axes z, y, x (y, x in 2D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.kernels import bspline
from tilereg.points import check_points

__all__ = ["Affine", "DisplacementField", "InverseTransform", "Transform"]

_CHUNK = 65_536
_MAX_NEWTON_STEPS = 60


def _array(value: ArrayLike) -> NDArray[np.float64]:
    """Return a read-only float64 copy."""
    array = np.array(value, dtype=np.float64, order="C")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Affine:
    """An affine map ``x -> matrix @ x + offset``.

    Parameters
    ----------
    matrix : (D, D) array_like
    offset : (D,) array_like, micrometre

    Raises
    ------
    InputError
        If the shapes do not fit, a number is not finite, or the matrix is singular.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check both arrays."""
        matrix, offset = _array(self.matrix), _array(self.offset)
        ndim = len(offset) if offset.ndim == 1 else 0
        if ndim not in (2, 3) or matrix.shape != (ndim, ndim):
            raise InputError(
                f"Invalid affine of matrix {matrix.shape} and offset {offset.shape}. "
                "A (D, D) matrix and a (D,) offset with D of 2 or 3 are needed."
            )
        if not (np.isfinite(matrix).all() and np.isfinite(offset).all()):
            raise InputError(
                "Invalid affine: its matrix or offset holds a number that is not finite."
            )
        if np.linalg.cond(matrix) > 1e12:
            raise InputError(f"Invalid affine: its matrix {matrix.tolist()} is singular.")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "offset", offset)

    @classmethod
    def identity(cls, ndim: int) -> Affine:
        """Return the map that moves nothing."""
        return cls(np.eye(ndim), np.zeros(ndim))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.offset)

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, D) points."""
        array = np.asarray(points, dtype=np.float64)
        return np.asarray(array @ self.matrix.T + self.offset)

    @property
    def stretch(self) -> float:
        """The largest factor, above one, by which it lengthens or shortens any direction."""
        scales = np.linalg.svd(self.matrix, compute_uv=False)
        return float(max(scales[0], 1 / scales[-1]))

    @property
    def inverse(self) -> Affine:
        """The map the other way."""
        matrix = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        return Affine(matrix, -matrix @ self.offset)

    def compose(self, first: Affine) -> Affine:
        """Return the map that applies `first` and then this one."""
        return Affine(self.matrix @ first.matrix, self.matrix @ first.offset + self.offset)

    def bounds(
        self, low: ArrayLike, high: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the box around the image of the box from `low` to `high`."""
        low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        centre, half = (low + high) / 2, (high - low) / 2
        mid, reach = self.matrix @ centre + self.offset, np.abs(self.matrix) @ half
        return mid - reach, mid + reach


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A smooth displacement: a cubic B-spline on a regular lattice.

    ``u(x) = sum_k B3((x - origin) / spacing - k) c_k`` for x in the domain, which reaches from
    one spacing inside the first node to one inside the last; outside, u is that of the nearest
    point of the domain. B-splines are positive and sum to one, so u in any region lies between
    the smallest and the largest coefficient whose support meets it.

    Parameters
    ----------
    coefficients : (n_1, .., n_D, D) array_like, micrometre
        At least four nodes an axis, or a single one where the field is constant.
    origin : (D,) array_like, micrometre
        World position of node (0, 0, 0).
    spacing : (D,) array_like, micrometre
        Distance of the nodes.

    Raises
    ------
    InputError
        If shapes do not fit, a spacing is not above zero, or a number is not finite.
    """

    coefficients: NDArray[np.float64]
    origin: NDArray[np.float64]
    spacing: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check all arrays."""
        coefficients = _array(self.coefficients)
        origin, spacing = _array(self.origin), _array(self.spacing)
        ndim = coefficients.ndim - 1
        if ndim not in (2, 3) or {(ndim,)} != {
            origin.shape,
            spacing.shape,
            coefficients.shape[-1:],
        }:
            raise InputError(
                f"Invalid field of coefficients {coefficients.shape}, origin {origin.shape} and "
                f"spacing {spacing.shape}. (n_1, .., n_D, D), (D,) and (D,) are needed."
            )
        if any(n != 1 and n < 4 for n in coefficients.shape[:-1]):
            raise InputError(
                f"Invalid lattice of {coefficients.shape[:-1]} nodes. Every axis needs one or at "
                "least four."
            )
        if not all(np.isfinite(a).all() for a in (coefficients, origin, spacing)):
            raise InputError("Invalid field: it holds a number that is not finite.")
        if not (spacing > 0).all():
            raise InputError(f"Invalid lattice spacing {spacing.tolist()} um. It must be > 0.")
        object.__setattr__(self, "coefficients", coefficients)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "spacing", spacing)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.origin)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Number of lattice nodes an axis."""
        return self.coefficients.shape[:-1]

    @property
    def domain(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """First and last corner of the box in which the field varies."""
        nodes = np.asarray(self.nodes)
        first = np.where(nodes > 1, 1, 0)
        last = np.where(nodes > 1, nodes - 2, 0)
        return self.origin + first * self.spacing, self.origin + last * self.spacing

    def _embedded(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return origin, 1 / spacing and coefficients with three axes."""
        if self.ndim == 3:
            return self.origin, 1.0 / self.spacing, self.coefficients
        origin = np.concatenate([[0.0], self.origin])
        return origin, np.concatenate([[1.0], 1.0 / self.spacing]), self.coefficients[None]

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the displacement (N, D) at (N, D) points."""
        array = embed(np.asarray(points, dtype=np.float64))
        out = np.empty((len(array), self.ndim))
        bspline.evaluate(array, *self._embedded(), out)
        return out

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the derivatives du_d / dx_e, (N, D, D), at (N, D) points."""
        array = embed(np.asarray(points, dtype=np.float64))
        out = np.empty((len(array), self.ndim, 3))
        bspline.evaluate_jacobian(array, *self._embedded(), out)
        return out[:, :, 3 - self.ndim :]

    def bounds(
        self, low: ArrayLike, high: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the smallest and largest u, an axis each, that the box low..high can hold."""
        region = []
        for axis, num_nodes in enumerate(self.nodes):
            if num_nodes == 1:
                region.append(slice(0, 1))
                continue
            ends = np.array([np.asarray(low)[axis], np.asarray(high)[axis]]) - self.origin[axis]
            first, last = np.clip(ends / self.spacing[axis], 1, num_nodes - 2)
            start = min(int(np.floor(first)), num_nodes - 3) - 1
            region.append(slice(start, min(int(np.floor(last)), num_nodes - 3) + 3))
        support = self.coefficients[tuple(region)].reshape(-1, self.ndim)
        return support.min(axis=0), support.max(axis=0)


def embed(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N, 3) points; 2D points get z = 0."""
    if points.shape[-1] == 3:
        return np.ascontiguousarray(points)
    return np.concatenate([np.zeros((len(points), 1)), points], axis=1)


@dataclass(frozen=True, eq=False)
class Transform:
    """The pull-back ``x_moving = A x_fixed + b + u(x_fixed)``.

    Parameters
    ----------
    affine : Affine
        A and b.
    field : DisplacementField, optional
        u; none for a purely affine map.

    Examples
    --------
    >>> shift = Transform(Affine(np.eye(2), [3.0, 0.0]))
    >>> shift([[1.0, 1.0]])
    array([[4., 1.]])
    >>> shift.inverse([[4.0, 1.0]])
    array([[1., 1.]])
    """

    affine: Affine
    field: DisplacementField | None = None

    def __post_init__(self) -> None:
        """Check that both parts have the same number of axes."""
        if self.field is not None and self.field.ndim != self.affine.ndim:
            raise InputError(
                f"The affine has {self.affine.ndim} axes, the field has {self.field.ndim}."
            )

    @classmethod
    def identity(cls, ndim: int) -> Transform:
        """Return the map that moves nothing."""
        return cls(Affine.identity(ndim))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.affine.ndim

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, D) fixed points to the moving world, micrometre."""
        array = self._check(points)
        return self._map(array)

    def _map(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map checked points."""
        moved = self.affine(points)
        return moved if self.field is None else moved + self.field(points)

    def _check(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return valid points of this map's dimension."""
        array = check_points(points)
        if array.shape[1] != self.ndim:
            raise InputError(
                f"Invalid shape {array.shape} of points. The transform has {self.ndim} axes."
            )
        return array

    @property
    def inverse(self) -> InverseTransform:
        """The map from the moving to the fixed world, for points."""
        return InverseTransform(self)

    def jacobian(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return the derivatives dT_d / dx_e, (N, D, D), at (N, D) points."""
        array = self._check(points)
        linear = np.broadcast_to(self.affine.matrix, (len(array), self.ndim, self.ndim))
        return linear.copy() if self.field is None else linear + self.field.jacobian(array)

    def bounds(
        self, low: ArrayLike, high: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a box in the moving world that holds the image of the fixed box low..high."""
        first, last = self.affine.bounds(low, high)
        if self.field is None:
            return first, last
        smallest, largest = self.field.bounds(low, high)
        return first + smallest, last + largest


@dataclass(frozen=True, eq=False)
class InverseTransform:
    """The inverse of a `Transform`, found point by point with Newton's method.

    Converges where the transform does not fold. A point whose image cannot be reached to
    `tolerance` comes back as NaN, never as a guess.

    Parameters
    ----------
    forward : Transform
    tolerance : float
        Largest accepted error, as a share of the size of the cloud of points or of the largest
        displacement, whichever is larger.
    """

    forward: Transform
    tolerance: float = 1e-10

    @property
    def inverse(self) -> Transform:
        """The transform that this is the inverse of."""
        return self.forward

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.forward.ndim

    def __call__(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map (N, D) moving points to the fixed world, micrometre."""
        array = self.forward._check(points)
        if self.forward.field is None:
            return self.forward.affine.inverse(array)
        parts = [self._solve(array[i : i + _CHUNK]) for i in range(0, len(array), _CHUNK)]
        return np.concatenate(parts) if parts else array.copy()

    def _solve(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Solve T(x) = target by damped Newton steps from the affine inverse."""
        field: Any = self.forward.field
        scale = float(np.abs(field.coefficients).max()) + float(np.ptp(target, axis=0).max())
        accepted = self.tolerance * (scale + float(np.abs(target).max()))
        x = self.forward.affine.inverse(target)
        error = self.forward._map(x) - target
        size = np.linalg.norm(error, axis=1)
        damping = np.ones(len(x))
        for _ in range(_MAX_NEWTON_STEPS):
            open_rows = np.flatnonzero(size > accepted)
            if not len(open_rows):
                break
            step = _newton_step(self.forward.jacobian(x[open_rows]), error[open_rows])
            trial = x[open_rows] - damping[open_rows, None] * step
            trial_error = self.forward._map(trial) - target[open_rows]
            trial_size = np.linalg.norm(trial_error, axis=1)
            better = trial_size < size[open_rows]
            rows = open_rows[better]
            x[rows], error[rows], size[rows] = (
                trial[better],
                trial_error[better],
                trial_size[better],
            )
            damping[rows] = np.minimum(1.0, 2 * damping[rows])
            damping[open_rows[~better]] /= 2
        x[size > accepted] = np.nan
        return x


def _newton_step(jacobian: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return J^-1 e a row; where J is singular the plain error."""
    safe = np.abs(np.linalg.det(jacobian)) > 1e-12
    step = error.copy()
    step[safe] = np.linalg.solve(jacobian[safe], error[safe][..., None])[..., 0]
    return step
