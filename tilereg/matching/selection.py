"""How stiff the map is: chosen by pairs that are kept out of the fit.

Every candidate is fitted to a part of the matched pairs and judged on the rest. Fields through few
pairs are judged by how well all others predict each, in closed form (`tilereg.kriging`). Of many
pairs the coherence width is found by walking downhill from a middle one, so soft fields, which
cost most, are only looked at where stiff ones fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tilereg.affine import fit_affine, fit_rigid, fit_translation
from tilereg.blas import one_thread
from tilereg.kriging import residuals_of, sampled
from tilereg.lattice import Lattice, NormalEquations
from tilereg.smoothing import Coherent
from tilereg.transform import Affine

__all__ = ["SIMPLE_MODELS", "Selection", "fit_simple", "select_model"]

Floats = NDArray[np.float64]
Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]

SIMPLE_MODELS = ("translation", "rigid", "affine")
# Pairs an axis that a model needs before it is looked at.
_FEWEST_PAIRS = {"translation": 1, "rigid": 3, "affine": 5, "field": 8}
_BETAS = (48.0, 32.0, 22.0, 16.0, 11.0, 8.0, 5.5)
_VARIANCES = (0.01, 0.1, 1.0)
_MANY_PAIRS = 1000
_FOLDS = 5
_MOST_NODES_A_PAIR = 2.0
_LEAST_NODES = 400
_TRUNCATION = 4.0
_SIMPLE_GAIN = 0.98
# Losses that differ by less, in spacings, differ by rounding.
_ROUNDING = 1e-9
# Of more pairs than these some blocks are looked at.
_MOST_PAIRS, _BLOCK, _BLOCKS = 60_000, 5000, 6


@dataclass(frozen=True)
class Selection:
    """The model with the least held-out residual.

    Parameters
    ----------
    model : str
        'translation', 'rigid', 'affine' or 'field'.
    prior : Coherent
        Prior of the field; of no meaning for the other models.
    losses : dict
        Held-out root mean square residual, truncated, of everything that was tried.
    """

    model: str
    prior: Coherent
    losses: dict[str, float]


def fit_simple(model: str, source: Floats, target: Floats, weights: Floats) -> Affine:
    """Fit a translation, a rigid or an affine map to weighted pairs."""
    if model == "translation":
        return fit_translation(source, target, weights)
    if model == "rigid":
        return fit_rigid(source, target, weights)
    return fit_affine(source, target, weights)


def select_model(
    source: Floats, base: Floats, target: Floats, sigma: float, *, beta: float | None = None
) -> Selection:
    """Choose between rigid, affine and fields of several widths.

    Parameters
    ----------
    source, target : (K, D) ndarray
        Matched pairs in units of the mean spacing.
    base : (K, D) ndarray
        Where the base map brings the source.
    sigma : float
        Standard deviation of a pair an axis.
    beta : float, optional
        Only look at fields of this coherence width.
    """
    rows = np.random.default_rng(0).permutation(len(source))
    source, base, target = source[rows], base[rows], target[rows]
    losses: dict[str, float] = {}
    best, chosen = np.inf, ("translation", Coherent(_BETAS[0], _VARIANCES[0]))
    if len(source) < _MANY_PAIRS and beta is None:
        folds = list(_folds(len(source)))
        for model in SIMPLE_MODELS:
            if len(source) < _FEWEST_PAIRS[model] * source.shape[1]:
                continue
            losses[model] = _simple_loss(model, source, target, sigma, folds)
            if losses[model] < _SIMPLE_GAIN * best - _ROUNDING:
                best, chosen = losses[model], (model, chosen[1])
    if len(source) >= _FEWEST_PAIRS["field"] * source.shape[1] or beta is not None:
        fields = _field_losses(source, target - base, sigma, _BETAS if beta is None else (beta,))
        losses |= {f"field beta={p.beta:g} variance={p.variance:g}": v for p, v in fields.items()}
        # Of equals the stiffest.
        prior = min(fields, key=lambda p: fields[p])
        if fields[prior] < _SIMPLE_GAIN * best - _ROUNDING:
            chosen = ("field", prior)
    return Selection(chosen[0], chosen[1], losses)


def _descend(loss_of: Callable[[Coherent], float], betas: tuple[float, ...]) -> Coherent:
    """Walk downhill over the coherence widths, then choose the variance."""
    middle = len(betas) // 2
    variance = _VARIANCES[len(_VARIANCES) // 2]
    losses = {middle: loss_of(Coherent(betas[middle], variance))}
    for step in (1, -1):
        place = middle
        while 0 <= place + step < len(betas):
            losses[place + step] = loss_of(Coherent(betas[place + step], variance))
            if losses[place + step] >= losses[place]:
                break
            place += step
        if place != middle:
            break
    best = betas[min(losses, key=lambda place: losses[place])]
    return min((Coherent(best, v) for v in _VARIANCES), key=loss_of)


def _field_losses(
    source: Floats,
    shift: Floats,
    sigma: float,
    betas: tuple[float, ...],
) -> dict[Coherent, float]:
    """Return the held-out residual of fields; infinite where the lattice is too fine.

    Of few pairs each is left out in turn; of many a sample would tell less than one split of all.
    """
    if len(source) >= _MANY_PAIRS:
        tried: dict[Coherent, float] = {}
        blocks = [(source[rows], shift[rows]) for rows in _blocks(source)]

        def loss_of(prior: Coherent) -> float:
            if prior not in tried:
                # A width that was asked for is taken.
                is_out = len(betas) > 1 and any(_is_too_fine(x, prior.beta) for x, _ in blocks)
                tried[prior] = np.inf if is_out else _field_loss(prior, blocks, sigma)
            return tried[prior]

        _descend(loss_of, betas)
        return tried
    rows = sampled(source)
    noises = tuple(sigma**2 / variance for variance in _VARIANCES)
    losses: dict[Coherent, float] = {}
    for beta in betas:
        if len(betas) > 1 and _is_too_fine(source, beta):
            losses |= {Coherent(beta, variance): np.inf for variance in _VARIANCES}
            continue
        with one_thread():
            found = residuals_of(source[rows], shift[rows], beta, noises)
        for variance, residual in zip(_VARIANCES, found.T, strict=True):
            losses[Coherent(beta, variance)] = _loss([residual[:, None]], sigma)
    return losses


def _lattice(points: Floats, beta: float) -> Lattice:
    """Return the lattice that a field of this width needs."""
    return Lattice.cover(points.min(axis=0), points.max(axis=0), Coherent(beta, 1.0).spacing)


def _is_too_fine(points: Floats, beta: float) -> bool:
    """Whether the lattice of a width has far more nodes than there are pairs to hold it."""
    return _lattice(points, beta).size > max(_LEAST_NODES, _MOST_NODES_A_PAIR * len(points))


def _folds(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (fit, judge) rows of shuffled pairs: one split of many pairs, five of few."""
    part = np.arange(count) % _FOLDS
    for fold in range(1 if count >= _MANY_PAIRS else _FOLDS):
        yield np.flatnonzero(part != fold), np.flatnonzero(part == fold)


def _loss(residuals: list[Floats], sigma: float) -> float:
    """Return the root mean square of residuals, the large ones truncated."""
    square = np.minimum((np.concatenate(residuals) ** 2).sum(1), (_TRUNCATION * sigma) ** 2)
    return float(np.sqrt(square.mean()))


def _simple_loss(
    model: str,
    source: Floats,
    target: Floats,
    sigma: float,
    folds: Folds,
) -> float:
    """Return the held-out residual of a rigid or affine model."""
    residuals = []
    for fit, judge in folds:
        if len(fit) < source.shape[1] + 1:
            return np.inf
        affine = fit_simple(model, source[fit], target[fit], np.ones(len(fit)))
        residuals.append(target[judge] - affine(source[judge]))
    return _loss(residuals, sigma)


def _blocks(points: Floats) -> list[NDArray[np.int64]]:
    """Return rows of shuffled points: all of them, or of very many some compact parts.

    As dense as all are, but on a small lattice.
    """
    if len(points) <= _MOST_PAIRS:
        return [np.arange(len(points))]
    # The points are shuffled: the first are spread over the cloud as all are.
    near = cKDTree(points).query(points[:_BLOCKS], k=_BLOCK)[1]
    return [np.sort(rows) for rows in near]


def _field_loss(prior: Coherent, blocks: list[tuple[Floats, Floats]], sigma: float) -> float:
    """Return the held-out residual of a field through blocks of shuffled points and shifts."""
    residuals = []
    for source, shift in blocks:
        lattice = _lattice(source, prior.beta)
        for fit, judge in _folds(len(source)):
            weights = np.full(len(fit), 1 / sigma**2)
            equations = NormalEquations.assemble(lattice, source[fit], weights, shift[fit])
            solution = prior.solve(equations, tolerance=1e-3)
            predicted = lattice.field(solution.coefficients)(source[judge])
            residuals.append(shift[judge] - predicted)
    return _loss(residuals, sigma)
