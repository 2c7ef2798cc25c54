"""A field that is fitted to all pairs, and judged by those that were held out of a first fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.fields.fit import ModelFit, fit_model
from tilereg.fields.model import FieldModel
from tilereg.points import Correspondences
from tilereg.transform import Transform

__all__ = ["JudgedFit", "fit_judged"]


@dataclass(frozen=True, kw_only=True)
class JudgedFit:
    """Two fits of one model.

    Parameters
    ----------
    fit : ModelFit
        To all pairs.
    judge : Transform
        The map that has not seen the held-out pairs; the same where none are held out.
    pairs : Correspondences
        With the residuals of the fit, those of held-out pairs by the judge.
    """

    fit: ModelFit
    judge: Transform
    pairs: Correspondences

    @property
    def description(self) -> dict[str, Any]:
        """What was fitted and how well it predicts, as plain numbers and names."""
        held = self.pairs.residual[self.pairs.held_out]
        return {
            "field": self.fit.model.name,
            "held_out_rms_um": (
                {self.fit.model.name: float(np.sqrt((held**2).mean()))} if len(held) else {}
            ),
            "parameters": self.fit.parameters,
            "cross_validation_um": self.fit.losses,
            "lattice_error_um": self.fit.lattice_error,
        }


def fit_judged(
    pairs: Correspondences, model: FieldModel, domain: tuple[ArrayLike, ArrayLike]
) -> JudgedFit:
    """Fit a model to all pairs, and one of the same kind to those that are not held out.

    What the model leaves open is chosen without the held-out pairs, so that they judge the choice
    as well.

    Parameters
    ----------
    pairs : Correspondences
    model : FieldModel
    domain : pair of (D,) array_like, micrometre
        Box in which the field may vary.

    Raises
    ------
    InputError
        If the model cannot be fitted.
    """
    held = pairs.held_out

    def fitted(rows: NDArray[np.bool_], wanted: FieldModel) -> ModelFit:
        return fit_model(
            pairs.fixed[rows],
            pairs.moving[rows],
            model=wanted,
            weight=pairs.weight[rows],
            domain=domain,
        )

    first = fitted(~held, model) if held.any() else None
    fit = fitted(np.ones_like(held), model if first is None else first.model)
    if first is not None:
        fit = replace(fit, losses=first.losses)
    judge = fit.transform if first is None else first.transform
    moved = np.where(held[:, None], judge(pairs.fixed), fit.transform(pairs.fixed))
    residual = np.linalg.norm(moved - pairs.moving, axis=1)
    return JudgedFit(fit=fit, judge=judge, pairs=replace(pairs, residual=residual))
