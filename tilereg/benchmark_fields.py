"""The deformations of a published benchmark of intensity-based registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tilereg.deformations import GaussianBumps, PolynomialField
from tilereg.errors import InputError

__all__ = ["BENCHMARK_FIELDS", "FieldPreset", "benchmark_field"]


@dataclass(frozen=True)
class FieldPreset:
    """A deformation of the benchmark; lengths are shares of the shorter of Y and X.

    Parameters
    ----------
    size : float
        Largest displacement D: of each axis for a polynomial, of each bump otherwise.
    cap : float, voxels
        Most that D may be.
    width : float
        R of the bumps.
    num_bumps : int
        None: a polynomial.
    """

    size: float
    cap: float
    width: float = 0.0
    num_bumps: int = 0


BENCHMARK_FIELDS: dict[str, FieldPreset] = {
    "polynomial_small": FieldPreset(0.03, 15.0),
    "polynomial_large": FieldPreset(0.06, 30.0),
    "gaussian_small": FieldPreset(0.03, 15.0, 0.06, 1),
    "gaussian_large": FieldPreset(0.06, 30.0, 0.10, 1),
    "multi_point": FieldPreset(0.04, 20.0, 0.05, 4),
}
"""Definition of each deformation."""


def benchmark_field(
    name: str, shape: Sequence[int], seed: int, *, size: float | None = None
) -> PolynomialField | GaussianBumps:
    """Return the pull map ``x + d(x)`` of the benchmark, moving to reference, in voxels.

    Parameters
    ----------
    name : str
        One of `BENCHMARK_FIELDS`.
    shape : (3,) ints
    seed : int
    size : float, voxels, optional
        Largest displacement, in place of the definition's share of the shape. The same seed
        gives the same field but for this factor.

    Raises
    ------
    InputError
        If the name is unknown, the shape has not three axes, or a number is out of range.
    """
    if name not in BENCHMARK_FIELDS:
        raise InputError(f"Unknown deformation '{name}'. Known: {', '.join(BENCHMARK_FIELDS)}.")
    if len(shape) != 3 or min(shape) < 1 or seed < 0:
        raise InputError(
            f"Invalid shape {tuple(shape)} or seed {seed} of a deformation. Give three axes of at "
            "least one voxel and a seed >= 0."
        )
    if size is not None and not (np.isfinite(size) and size >= 0):
        raise InputError(f"Invalid size {size} of a deformation. Give voxels, 0 or more.")
    preset = BENCHMARK_FIELDS[name]
    rng = np.random.default_rng(seed)
    shortest = min(shape[-2:])
    size = min(preset.size * shortest, preset.cap) if size is None else size
    corners = np.array(list(product(*[(0, n - 1) for n in shape])), dtype=np.float64)
    if preset.num_bumps == 0:
        raw = PolynomialField(rng.uniform(-1, 1, size=(3, 6)), tuple(shape))
        # The polynomials are linear in each coordinate: the largest value is at a corner.
        largest = np.abs(raw(corners) - corners).max(axis=0)
        return PolynomialField(raw.coefficients * (size / largest)[:, None], tuple(shape))
    directions = rng.normal(size=(preset.num_bumps, 3))
    normalised = rng.uniform(-0.7, 0.7, size=(preset.num_bumps, 3))
    return GaussianBumps(
        matrix=np.eye(3),
        offset=np.zeros(3),
        centres=(normalised + 1) / 2 * corners[-1],
        amplitudes=size * directions / np.linalg.norm(directions, axis=1, keepdims=True),
        widths=np.full(preset.num_bumps, preset.width * shortest),
    )
