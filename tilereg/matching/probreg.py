"""The engines `probreg` and `probreg-filterreg`: drifts of the package probreg, an optional extra.

probreg's CPD has no fast Gauss transform: its posterior is a dense matrix of all pairs and its
nonrigid step solves a dense system, whatever its documentation says of fast transforms, which serve
other methods of it. It is an independent implementation to compare with, for small clouds.

Its known traps, and what is done about them:

* It imports open3d and matplotlib's windows, which need system libraries: so it is imported when it
  is asked for, and whatever that raises becomes an error with a remedy.
* Tolerances and least variances are in squared units of the coordinates, and its outliers have one
  density, one in a unit of volume: it sees coordinates of unit deviation, and w is changed so that
  the outliers are as dense as the spots.
* Its drift starts from the variance of all differences, stops by a difference of variances, and
  divides by zero where the clouds are the same: its steps are called from the loop of `cpd-dense`.
* Its kernel is exp(-r^2 / (2 beta)): it is given the square of the width.
* Its CPD counts three axes in the plane as well: what that changes is divided out again.
* Its rigid drift shrinks clouds unless the scale is held, and FilterReg keeps the variance of all
  differences unless it is told to update it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.blas import one_thread
from tilereg.errors import InputError
from tilereg.matching.coarse import Coarse
from tilereg.matching.cpd_dense import DenseEngine
from tilereg.matching.dense_drift import Dense
from tilereg.matching.descent import Descended, Descent, Expectation, check_size, descend
from tilereg.matching.following import follow, softer
from tilereg.matching.from_pairs import from_pairs
from tilereg.matching.pairing import mutual_neighbours
from tilereg.matching.problem import Found, Problem
from tilereg.transform import Affine

__all__ = ["check_installed", "probreg", "probreg_filterreg"]

Floats = NDArray[np.float64]

# Matrices of all pairs that a step of its drift holds at once.
_MATRICES = 4
# FilterReg: where sigma starts and the least, in spacings, and the tolerance of its residual.
_WIDE, _LEAST, _TOLERANCE = 0.5, 0.01, 1e-6


def probreg(problem: Problem, pose: Coarse) -> Found:
    """Find the map by probreg's CPD, from a pose: affine maps and coherent fields.

    Raises
    ------
    InputError
        If probreg cannot be imported.
    ResourceError
        If all pairs would take too much memory: probreg's CPD has no fast Gauss transform.
    """
    count = len(problem.fitted)
    check_size(count, max(count, len(problem.moving)), _MATRICES)
    steps = _Steps(_load("cpd"), float(problem.moving.std()))
    # It knows no shift without a rotation.
    models = {"translation": steps.rigid, "rigid": steps.rigid, "affine": steps.affine}
    with one_thread():
        found = DenseEngine(problem, pose.affine, steps.nonrigid, models).run()
    return replace(found, model="rigid") if found.model == "translation" else found


def probreg_filterreg(problem: Problem, pose: Coarse) -> Found:
    """Find a rigid map by probreg's FilterReg, from a pose, then fields as `icp` does.

    Raises
    ------
    InputError
        If probreg cannot be imported.
    """
    filterreg = _load("filterreg")
    unit, ndim = float(problem.moving.std()), problem.moving.shape[1]
    near = problem.crowding
    with one_thread(), np.errstate(all="ignore"):
        found = filterreg.registration_filterreg(
            pose.affine(problem.fitted) / unit,
            problem.moving / unit,
            sigma2=(_WIDE * near / unit) ** 2,
            update_sigma2=True,
            w=problem.w,
            maxiter=problem.max_iterations,
            tol=_TOLERANCE,
            min_sigma2=(_LEAST * near / unit) ** 2,
            tf_init_params={"rot": np.eye(ndim), "t": np.zeros(ndim)},
        ).transformation
    turned = Affine(found.rot, unit * np.asarray(found.t)).compose(pose.affine)
    return from_pairs(problem, follow(problem, turned, mutual_neighbours, softer(problem)))


def check_installed() -> None:
    """Raise if probreg cannot be imported.

    Raises
    ------
    InputError
        Saying what is missing, and what to do.
    """
    _load("cpd")


def _load(name: str) -> Any:
    """Import a module of probreg.

    Raises
    ------
    InputError
        Saying what is missing, and what to do.
    """
    try:
        with warnings.catch_warnings():
            # What its own imports warn of is nobody's concern here.
            warnings.simplefilter("ignore")
            return import_module(f"probreg.{name}")
    except Exception as error:  # open3d fails in many ways where a system library is missing.
        raise InputError(
            f"The methods of probreg cannot be used: importing it says '{error}' "
            f"({type(error).__name__}). Install it with pip install 'tilereg[probreg]', and libusb "
            "and GL of the system where they are missing, or use method='cpd'."
        ) from error


@dataclass(frozen=True)
class _Steps:
    """Steps of probreg's CPD on coordinates divided by a unit, in the loop of `cpd-dense`."""

    module: Any
    unit: float

    def rigid(
        self, source: Floats, target: Floats, *, w: float, descent: Descent, start: Floats | None
    ) -> Dense:
        """Run its rigid drift, the scale held at one."""
        # It is written for three axes: a plane is one of them that stays zero.
        ndim = source.shape[1]
        lead = np.zeros((len(source), 3 - ndim))
        step = self.module.RigidCPD(np.hstack([lead, source / self.unit]), update_scale=False)
        return self._linear((source, target, start), w, descent, step, lead)

    def affine(
        self, source: Floats, target: Floats, *, w: float, descent: Descent, start: Floats | None
    ) -> Dense:
        """Run its affine drift."""
        step = self.module.AffineCPD(source / self.unit)
        lead = np.zeros((len(source), 0))
        return self._linear((source, target, start), w, descent, step, lead)

    def nonrigid(
        self,
        source: Floats,
        target: Floats,
        *,
        w: float,
        beta: float,
        alpha: float,
        descent: Descent,
        left_out: float | None = None,
        start: Floats | None = None,
    ) -> Dense:
        """Run its nonrigid drift; it has no low rank."""
        del left_out
        unit = self.unit
        # Its beta is the square of the paper's.
        step = self.module.NonRigidCPD(source / unit, beta=(beta / unit) ** 2, lmd=alpha * unit**2)
        weights = np.zeros_like(source)

        def maximise(sums: Expectation, sigma2: float) -> Floats:
            nonlocal weights
            found = self._maximised(step, target / unit, sums, sigma2)
            weights = unit * np.asarray(found.w)
            return np.asarray(found.transform(source / unit))

        first = source if start is None else start
        done = self._descended(first, target, w, descent, step, maximise)
        return _dense(done, unit, Affine.identity(source.shape[1]), weights)

    def _linear(
        self,
        clouds: tuple[Floats, Floats, Floats | None],
        w: float,
        descent: Descent,
        step: Any,
        lead: Floats,
    ) -> Dense:
        """Run a drift without a field; `lead` are axes that are zero before those of the spots.

        The clouds are source, target and T(Y) to start from.
        """
        source, target, start = clouds
        unit, ndim = self.unit, source.shape[1]
        map_ = Affine.identity(ndim)
        wide = np.hstack([np.zeros((len(target), lead.shape[1])), target / unit])

        def maximise(sums: Expectation, sigma2: float) -> Floats:
            nonlocal map_
            widened = Expectation(sums.P1, sums.Pt1, np.hstack([lead, sums.PX]))
            found = self._maximised(step, wide, widened, sigma2)
            matrix = np.asarray(found.rot if hasattr(found, "rot") else found.b)[-ndim:, -ndim:]
            map_ = Affine(matrix, unit * np.asarray(found.t)[-ndim:])
            return map_(source) / unit

        first = source if start is None else start
        done = self._descended(first, target, w, descent, step, maximise)
        return _dense(done, unit, map_, np.zeros_like(source))

    def _maximised(self, step: Any, target: Floats, sums: Expectation, sigma2: float) -> Any:
        """Call a maximisation of probreg; return its transformation."""
        result = self.module.EstepResult(sums.Pt1, sums.P1, sums.PX, sums.P1.sum())
        # Its variance divides by what may be zero; the loop has one of its own.
        with np.errstate(all="ignore"):
            return step.maximization_step(target, result, sigma2).transformation

    def _descended(
        self, start: Floats, target: Floats, w: float, descent: Descent, step: Any, maximise: Any
    ) -> Descended:
        """Repeat its steps on coordinates divided by the unit."""
        unit, ndim = self.unit, target.shape[1]
        scaled = replace(
            descent,
            sigma=None if descent.sigma is None else descent.sigma / unit,
            least_sigma=descent.least_sigma / unit,
            offset=descent.offset / unit,
            density=float(np.median(descent.density)) * unit**ndim,
        )

        def expect(
            X: Floats, TY: Floats, sigma2: float, w: float, density: float | Floats
        ) -> Expectation:
            # Its outliers have the density one, in three dimensions.
            odds = (
                w / (1 - w) * float(np.median(density)) * (2 * math.pi * sigma2) ** (ndim / 2 - 1.5)
            )
            sums = step.expectation_step(TY, X, sigma2, 0.0, odds / (1 + odds))
            return Expectation(sums.p1, sums.pt1, sums.px)

        return descend(target / unit, start / unit, expect, maximise, w, scaled)


def _dense(done: Descended, unit: float, map_: Affine, weights: Floats) -> Dense:
    """Return a drift in the units of the problem."""
    return Dense(
        unit * done.moved, map_, weights, unit * done.sigma, done.w, done.posterior,
        done.num_iterations, done.is_settled,
    )  # fmt: skip
