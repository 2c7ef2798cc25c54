"""Whether a map is more than chance: the partners that it gives, and those that chance gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from tilereg.affine import num_parameters
from tilereg.matching.cells import CellList
from tilereg.matching.coarse import Coarse
from tilereg.matching.evidence import Chance
from tilereg.matching.pairing import GATE
from tilereg.matching.problem import Found, Problem
from tilereg.matching.selection import SIMPLE_MODELS

__all__ = ["CERTAIN", "Verdict", "judge"]

Floats = NDArray[np.float64]

CERTAIN = -5.0
"""Log10 of the probability of chance below which a map is certain."""

_CERTAIN_OF_FEW = -3.5


@dataclass(frozen=True)
class Verdict:
    """How certain a map is.

    Parameters
    ----------
    matched, chance : float
        Share of the fixed spots with a moving spot within three standard deviations, and the same
        share when they are moved aside.
    evidence : float
        Log10 of the probability that chance gives as many judges a partner.
    is_certain : bool
    """

    matched: float
    chance: float
    evidence: float
    is_certain: bool


def judge(problem: Problem, found: Found, pose: Coarse) -> Verdict:
    """Judge a map by the held-out spots; of few spots, by all that its parameters leave over."""
    held = problem.held
    cells = CellList.build(problem.targets, 1.0)
    moved = problem.moved(found.map)
    reach = GATE * found.sigma
    near = cells.count_within(moved, reach) > 0
    by_chance = np.mean([cells.count_within(moved + a, reach) > 0 for a in problem.aside], axis=0)
    matched, chance = float(near.mean()), float(by_chance.mean())
    if not held.any():
        evidence = _pose_evidence(problem, found, moved, pose)
        return Verdict(matched, chance, evidence, evidence < _CERTAIN_OF_FEW)
    judged = int(held.sum())
    odds = max(float(by_chance[held].mean()), chance, 0.5 / judged / len(problem.aside))
    log_odds = binom.logsf(int(near[held].sum()) - 1, judged, min(odds, 1.0))
    evidence = float(log_odds) / math.log(10)
    if found.model in SIMPLE_MODELS:
        # So few parameters are paid for by a few spots: all others judge, held out or not.
        every = _pose_evidence(problem, found, moved, pose)
        evidence = min(evidence, every) + math.log10(2)
    # The same spots may have chosen among several maps.
    evidence += math.log10(found.num_compared)
    return Verdict(matched, chance, evidence, evidence < CERTAIN)


def _pose_evidence(problem: Problem, found: Found, moved: Floats, pose: Coarse) -> float:
    """Return log10 of the chance that a fitted map gives as many partners as it does.

    For clouds too small to hold spots out: the spots that the parameters of the model could have
    placed do not count, and the poses that were tried do.
    """
    model = "affine" if found.model == "field" else found.model
    ndim = problem.fixed.shape[1]
    parameters = num_parameters(model, ndim)
    if problem.landmarks is not None:
        # A spot at each may have been placed by it.
        parameters += ndim * len(problem.landmarks)
    tried = math.log10(len(problem.fixed) * len(problem.moving))
    if pose.source != "given":
        tried += math.log10(max(1, pose.num_tried))
    chance = Chance.of(problem.moving, problem.shelves, problem.crowding)
    return chance.evidence(moved, parameters) + tried
