"""From tiles to one map: where matched tiles lead those around them, and the field of all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from tilereg.affine import fit_affine
from tilereg.field import cover
from tilereg.kriging.parts import PairPart, fit_parts, plan_parts_model
from tilereg.lattice import NormalEquations
from tilereg.matching.pairing import GATE
from tilereg.matching.result import Match
from tilereg.matching.tiles import TileMatch
from tilereg.matching.verdict import CERTAIN
from tilereg.points import Correspondences
from tilereg.smoothing import Coherent
from tilereg.transform import Affine, DisplacementField, Transform

__all__ = ["joined", "predicted"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# What leads: nodes so many spacings apart, at most so many, from so many pairs of each tile, which
# are off by so many spacings; and how closely a matrix is known.
_STEP, _MOST_NODES, _PAIRS_A_TILE, _NOISE, _KNOWN = 8.0, 30_000, 2000, 0.15, 0.05
# A message names at most so many tiles; sparse ones have such a share of the usual pairs.
_MOST_NAMED, _SPARSE = 10, 0.25
# Deviation of pairs in the joined field over that within tiles, from which on it is told.
_MUCH_WORSE = 1.3
# Steps aside by which chance was measured.
_STEPS = 6


def predicted(
    found: Sequence[TileMatch], pose: Affine, domain: tuple[Floats, Floats], spacing: float
) -> Transform:
    """Return a smooth map through some of the pairs of matched tiles, and where it leads beyond.

    Parameters
    ----------
    found : sequence of TileMatch
        At least one has pairs.
    pose : Affine, micrometre
        What the matrix is pulled to: a single tile tells little of what is far from it.
    domain : pair of (D,) ndarrays, micrometre
    spacing : float, micrometre
        Mean distance of neighbours.
    """
    picked = [_some(match) for match in found if len(match)]
    x, y = (np.concatenate(side) for side in zip(*picked, strict=True))
    middle, target = x.mean(axis=0), y.mean(axis=0)
    points, targets = (x - middle) / spacing, (y - target) / spacing
    inner = Affine(pose.matrix, (pose(middle[None])[0] - target) / spacing)
    affine = fit_affine(points, targets, prior=len(points) * _KNOWN**2, centre=inner)
    low, high = ((side - middle) / spacing for side in domain)
    lattice = cover(low, high, _STEP, _MOST_NODES)
    weights = np.full(len(points), 1 / _NOISE**2)
    equations = NormalEquations.assemble(lattice, points, weights, targets - affine(points))
    width = 2.0 * max(lattice.spacing)
    solution = Coherent(width, 1.0).solve(equations, tolerance=1e-3)
    field = lattice.field(solution.coefficients)
    world = Affine(affine.matrix, spacing * affine.offset + target - affine.matrix @ middle)
    return Transform(
        world,
        DisplacementField(
            spacing * field.coefficients, spacing * field.origin + middle, spacing * field.spacing
        ),
    )


def joined(
    tiles: Sequence[TileMatch],
    domain: tuple[Floats, Floats],
    num_moving: int,
    details: dict[str, Any],
) -> Match:
    """Fit one field to the pairs of all tiles, and judge it.

    Parameters
    ----------
    tiles : sequence of TileMatch
        All of them; at least one has pairs.
    domain : pair of (D,) ndarrays, micrometre
        Box in which the field may vary.
    num_moving : int
        Number of moving spots.
    details : dict
        What the result tells of how the pairs were found.
    """
    kept = _one_to_one(tiles)

    def parts(*, with_held: bool) -> Iterator[PairPart]:
        for match, rows in zip(tiles, kept, strict=True):
            used = rows if with_held else rows[~match.held_out[rows]]
            if len(used):
                yield PairPart(match.fixed[used], match.moving[used], match.trust[used])

    count = sum(map(len, kept))
    priors = [(m.beta, m.noise, len(m)) for m in tiles if len(m)]
    model = plan_parts_model(list(parts(with_held=False)), priors)
    judge, final = (
        fit_parts(partial(parts, with_held=held), model, domain, count) for held in (False, True)
    )
    pairs = _correspondences(tiles, kept, final, judge, num_moving, domain)
    judged = [match for match in tiles if match.is_judged]
    # A tile without registration looks far around: what it finds there says nothing of the others.
    good = [match for match in tiles if match.is_ok]
    near = _is_near(pairs, tiles)
    matched = int(near.sum()) / max(1, sum(match.num_spots for match in tiles))
    chance = sum(m.by_chance for m in good) / sum(m.num_spots for m in good)
    evidence = _evidence(judged, int(near[pairs.held_out].sum()), chance)
    is_ok = evidence < CERTAIN and np.linalg.det(final.affine.matrix) > 0
    num_ok = sum(match.is_ok for match in tiles)
    sigma = _deviation(pairs)
    message = (
        f"{count} pairs in {num_ok} of {len(tiles)} tiles; {100 * matched:.0f} % of the fixed "
        f"spots have a partner, {100 * chance:.0f} % by chance (log10 of its probability "
        f"{evidence:.1f})."
    )
    statuses = _statuses(tiles)
    held = pairs.held_out
    losses = {"kriging": _root_mean(pairs.residual[held])} if held.any() else {}
    return Match(
        transform=final,
        judge=judge,
        correspondences=pairs,
        status="ok" if is_ok else "no registration",
        message=message,
        evidence=evidence,
        share_matched=matched,
        share_chance=chance,
        residual_sigma=sigma,
        w=max(0.0, 1.0 - count / max(1, num_moving)),
        model="field",
        beta=model.prior.beta * model.unit,
        spacing=_mean([m.spacing for m in tiles], [len(m) for m in tiles]),
        details={
            **details,
            "field": "kriging",
            "held_out_rms_um": losses,
            "seams": [],
            "tiles": [
                _told(match, status, len(rows), domain)
                for match, status, rows in zip(tiles, statuses, kept, strict=True)
            ],
        },
        warnings=(*_warnings(tiles, statuses), *_coarse(tiles, sigma)),
    )


def _some(match: TileMatch) -> tuple[Floats, Floats]:
    """Return some of the pairs of a tile, spread as all are."""
    rows = np.linspace(0, len(match) - 1, min(len(match), _PAIRS_A_TILE)).astype(np.int64)
    return match.fixed[rows], match.moving[rows]


def _one_to_one(tiles: Sequence[TileMatch]) -> list[Rows]:
    """Return which pairs of each tile are kept: of two with one moving spot the nearer."""
    sizes = [len(match) for match in tiles]
    theirs = np.concatenate([match.moving_rows for match in tiles])
    miss = np.concatenate([match.miss for match in tiles])
    order = np.lexsort((miss, theirs))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = theirs[order][1:] != theirs[order][:-1]
    is_kept = np.zeros(len(order), dtype=bool)
    is_kept[order[is_first]] = True
    return [np.flatnonzero(part) for part in np.split(is_kept, np.cumsum(sizes)[:-1])]


def _correspondences(
    tiles: Sequence[TileMatch],
    kept: Sequence[Rows],
    final: Transform,
    judge: Transform,
    num_moving: int,
    domain: tuple[Floats, Floats],
) -> Correspondences:
    """Return the pairs of all tiles, sorted by the fixed row."""
    columns: dict[str, list[NDArray[Any]]] = {}
    ndim = len(domain[0])
    spacing = _mean([m.spacing for m in tiles], [len(m) for m in tiles])
    # Spots may lie in a plane or on a line.
    volume = float(np.prod(np.maximum(np.subtract(domain[1], domain[0]), spacing)))
    density = num_moving / max(1, sum(map(len, kept))) / volume
    for match, rows in zip(tiles, kept, strict=True):
        x, y, held = match.fixed[rows], match.moving[rows], match.held_out[rows]
        moved = final(x) if len(rows) else x
        moved[held] = judge(x[held]) if held.any() else moved[held]
        square = ((moved - y) ** 2).sum(axis=1)
        # Posterior of the pair against an outlier of the moving cloud's density.
        likely = np.exp(-0.5 * square / match.sigma**2)
        outlier = (2 * math.pi * match.sigma**2) ** (ndim / 2) * density
        weight = match.trust[rows] * likely / (likely + outlier)
        for name, column in {
            "fixed": x,
            "moving": y,
            "fixed_index": match.fixed_rows[rows],
            "moving_index": match.moving_rows[rows],
            # Zero says that a pair entered nothing.
            "weight": np.maximum(weight, np.finfo(np.float64).tiny),
            "residual": np.sqrt(square),
            "held_out": held,
            "tile": np.full(len(rows), match.tile.number, dtype=np.int64),
        }.items():
            columns.setdefault(name, []).append(column)
    every = Correspondences(**{name: np.concatenate(parts) for name, parts in columns.items()})
    return every.take(np.argsort(every.fixed_index, kind="stable"))


def _is_near(pairs: Correspondences, tiles: Sequence[TileMatch]) -> NDArray[np.bool_]:
    """Tell which pairs the joined map brings within three deviations of their tile."""
    reach = np.zeros(1 + max(match.tile.number for match in tiles))
    for match in tiles:
        reach[match.tile.number] = GATE * match.sigma
    return np.asarray(pairs.residual <= reach[pairs.tile])


def _evidence(judged: Sequence[TileMatch], near: int, chance: float) -> float:
    """Return log10 of the probability that chance gives as many held-out spots a partner.

    Where none are held out, that of the best tile, paid for by their number.
    """
    num = sum(match.num_judges for match in judged)
    if num == 0:
        return min(match.evidence for match in judged) + math.log10(len(judged))
    odds = min(1.0, max(chance, 0.5 / num / _STEPS))
    return float(binom.logsf(near - 1, num, odds)) / math.log(10)


def _deviation(pairs: Correspondences) -> float:
    """Return the deviation of a pair an axis by the joined map that has not seen it, if any."""
    judges = pairs.residual[pairs.held_out] if pairs.held_out.any() else pairs.residual
    return _root_mean(judges) / math.sqrt(pairs.ndim)


def _coarse(tiles: Sequence[TileMatch], sigma: float) -> tuple[str, ...]:
    """Say where the joined field does not follow what the tiles have found."""
    own = math.sqrt(_mean([m.sigma**2 for m in tiles], [len(m) for m in tiles]))
    if sigma <= _MUCH_WORSE * own:
        return ()
    return (
        f"Pairs are off by {sigma:.3g} um an axis in the one field through all tiles, and by "
        f"{own:.3g} um within their tiles: the deformation is finer than the field can hold.",
    )


def _mean(numbers: list[float], weights: list[int]) -> float:
    """Return the weighted mean of the numbers that have a weight."""
    used = [(n, w) for n, w in zip(numbers, weights, strict=True) if w]
    return sum(n * w for n, w in used) / sum(w for _, w in used)


def _root_mean(lengths: Floats) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt((lengths**2).mean()))


def _statuses(tiles: Sequence[TileMatch]) -> list[str]:
    """Return the status of each tile; 'sparse' where far fewer spots have a partner than usual."""
    shares = [len(match) / max(1, match.num_spots) for match in tiles]
    usual = float(np.median([s for s, match in zip(shares, tiles, strict=True) if match.is_ok]))
    return [
        "sparse" if match.is_ok and share < _SPARSE * usual else match.status
        for match, share in zip(tiles, shares, strict=True)
    ]


def _told(
    match: TileMatch, status: str, num_pairs: int, domain: tuple[Floats, Floats]
) -> dict[str, Any]:
    """Return what is told of a tile."""
    low, high = match.tile.within(*domain)
    return {
        "tile": match.tile.number,
        "low_um": low.tolist(),
        "high_um": high.tolist(),
        "status": status,
        "spots": match.num_spots,
        "pairs": num_pairs,
        "share_matched": match.near / max(1, match.num_spots),
        "share_chance": match.by_chance / max(1, match.num_spots),
        "residual_sigma_um": match.sigma,
    }


def _warnings(tiles: Sequence[TileMatch], statuses: Sequence[str]) -> tuple[str, ...]:
    """Say which tiles have hardly any pairs."""
    lost = [
        (match, status)
        for match, status in zip(tiles, statuses, strict=True)
        if status != "ok" and match.num_spots
    ]
    if not lost:
        return ()
    share = sum(m.num_spots for m, _ in lost) / sum(m.num_spots for m in tiles)
    named = ", ".join(f"{m.tile.number} ({status})" for m, status in lost[:_MOST_NAMED])
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return (
        f"{len(lost)} of {len(tiles)} tiles with {100 * share:.2g} % of the fixed spots have "
        f"hardly any pairs: {named}{more}. The transform is led there by the tiles around; 'tiles' "
        "in qc.json says where they are.",
    )
