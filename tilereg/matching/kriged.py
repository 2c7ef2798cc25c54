"""The field of an engine's pairs by kriging, and the one through all of them in the end."""

from __future__ import annotations

from dataclasses import replace

from tilereg.matching.pairing import pair_sigma
from tilereg.matching.problem import Found, Problem
from tilereg.matching.refit import Refit, fit_all, fit_judge, fit_plate

__all__ = ["by_kriging", "refit"]


def by_kriging(problem: Problem, found: Found) -> Found:
    """Fit the field by kriging, where the held-out spots do not clearly prefer what it is."""
    if found.model != "field" or found.field is None:
        return found
    must = problem.field == "kriging"
    fit = fit_judge(
        problem,
        found.map,
        found.sigma,
        pairs=found.grown,
        name=found.field,
        must=must,
    )
    if fit is None:
        return found
    moved = problem.moved(fit.transform)
    return replace(
        found,
        map=fit.transform,
        sigma=pair_sigma(moved, problem.targets, found.sigma, aside=problem.aside),
        field="kriging",
        beta=fit.beta,
        num_compared=found.num_compared + (not must),
        compared=fit.losses,
        kriging=fit.kriging,
    )


def refit(problem: Problem, found: Found) -> Refit | None:
    """Fit a field of the same kind to all pairs; None for an engine's own."""
    if found.field == "kriging":
        return fit_all(problem, found.map, found.sigma, pairs=found.grown, like=found.kriging)
    if found.grown is None:
        return None
    return fit_plate(problem, *found.grown)
