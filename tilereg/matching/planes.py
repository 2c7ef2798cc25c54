"""Planes across which displacements jump: where a step explains more than it does elsewhere.

Near a plane, a piece of it at a time, the displacements of pairs are fitted with a cubic along
its normal and a slope across, with and without a step. What the step explains, compared with what
it explains at all other planes, tells jumps from bends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tilereg.kernels import steps as kernels

__all__ = ["Side", "Steps", "cells"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Half the width of the strip along a plane, the distance of the planes that are looked at and the
# size of a piece, in spacings; pairs that tell of a step in it.
_HALF, _STRIDE, _ENOUGH = 5.0, 1.0, 25
_PIECE = {2: 20.0, 3: 10.0}
# Pairs in the pieces that are looked at: of more, some columns of pieces tell.
_MOST = 60_000
# How certain a step is, in deviations of what noise explains, and of what other planes do; how
# large it is, in standard deviations of a pair, and in spacings.
_CERTAIN, _LARGE, _LEAST = 12.0, 2.0, 0.05
# Share of what the steps of a plane explain that is one jump from field of view to field of view.
_ALIKE = 0.5
# A strip that holds a clearer plane, this many times as wide, is not another one.
_APART = 1.2
# How closely a plane is found, in spacings.
_CLOSELY = 0.1
_MOST_PLANES = 40


def cells(points: Floats, planes: Sequence[Floats]) -> tuple[Rows, ...]:
    """Return the field of view of each point between planes, an index an axis."""
    return tuple(np.searchsorted(p, points[:, a], side="right") for a, p in enumerate(planes))


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of the displacement across a plane, piece by piece.

    Parameters
    ----------
    jump : (G, D) ndarray
    weight : (G,) ndarray
        One over the variance of a step, in that of a pair.
    middle : (G, D) ndarray
        Of the pieces.
    """

    jump: Floats
    weight: Floats
    middle: Floats

    @property
    def gain(self) -> float:
        """What the steps explain of the sum of squares."""
        return float((self.weight * (self.jump**2).sum(axis=1)).sum())

    def size(self, usual: float) -> float:
        """Return the root mean square of the steps beyond what noise makes of them."""
        rest = max(self.gain - usual * self.jump.size, 0.0)
        return math.sqrt(rest / max(float(self.weight.sum()), 1e-300))

    def uncut(self, planes: Sequence[Sequence[float] | Floats], axis: int) -> Steps:
        """Return the pieces that no plane of another axis goes through."""
        keep = np.ones(len(self.weight), dtype=bool)
        for other, places in enumerate(planes):
            if other != axis and len(places):
                gap = np.abs(self.middle[:, other, None] - np.asarray(places)).min(axis=1)
                keep &= gap >= _PIECE[self.middle.shape[1]] / 2
        return Steps(self.jump[keep], self.weight[keep], self.middle[keep])


@dataclass(frozen=True, eq=False)
class Side:
    """The pairs at their places in one of the images, and their displacements.

    Parameters
    ----------
    points, values : (K, D) ndarrays
    sigma : float
        Standard deviation of a pair an axis.
    """

    points: Floats
    values: Floats
    sigma: float

    def planes(self) -> tuple[float, list[Floats]]:
        """Return how clear all planes are together, and where they are along each axis."""
        found: list[list[float]] = [[] for _ in range(self.points.shape[1])]
        total = 0.0
        for _ in range(_MOST_PLANES):
            best, axis, place = self._clearest(found)
            if best <= 0:
                break
            found[axis].append(self._closer(axis, place))
            total += best
        planes = [np.sort(np.array(places)) for places in found]
        kept = self._consistent(planes)
        return (total, kept) if any(map(len, kept)) else (0.0, kept)

    def shifts(self, planes: Sequence[Floats]) -> Floats:
        """Return the displacements (n_1, .., n_D, D) of the fields of view between planes."""
        ndim = self.points.shape[1]
        shape = tuple(len(p) + 1 for p in planes)
        numbers = np.arange(math.prod(shape)).reshape(shape)
        equations, right = [np.zeros((1, numbers.size))], [np.zeros((1, ndim))]
        for axis, places in enumerate(planes):
            for k, place in enumerate(places):
                steps = self.steps(axis, float(place)).uncut(planes, axis)
                index = list(cells(steps.middle, planes))
                rows = np.zeros((len(steps.middle), numbers.size))
                for beyond, sign in ((k + 1, 1.0), (k, -1.0)):
                    index[axis] = np.full(len(steps.middle), beyond)
                    rows[np.arange(len(rows)), numbers[tuple(index)]] = sign
                weight = np.sqrt(steps.weight)[:, None]
                equations.append(rows * weight)
                right.append(steps.jump * weight)
        matrix = np.concatenate(equations)
        solved = np.linalg.lstsq(matrix, np.concatenate(right), rcond=1e-9)[0]
        shifts = np.asarray(solved, dtype=np.float64).reshape(*shape, ndim)
        if not len(self.points):
            return shifts
        return np.asarray(shifts - shifts[cells(self.points, planes)].mean(axis=0))

    def steps(self, axis: int, place: float) -> Steps:
        """Fit the steps across a plane, in every piece that has enough pairs on both sides."""
        ndim = self.points.shape[1]
        side = _PIECE[ndim]
        order, along, columns = self._sorted[axis]
        first, last = np.searchsorted(along, [place - _HALF, place + _HALF])
        rows = order[first:last]
        others = [a for a in range(ndim) if a != axis]
        distinct, groups = np.unique(columns[first:last], return_inverse=True)
        middle = np.full((len(distinct), ndim), place)
        middle[:, others] = (self._pieces(axis, distinct) + 0.5) * side
        groups = groups.reshape(-1).astype(np.int64)
        size, num = 5 + len(others), len(distinct)
        gram, right = np.zeros((num, size, size)), np.zeros((num, size, ndim))
        square, count = np.zeros(num), np.zeros(num, dtype=np.int64)
        points = self.points[rows]
        across = (points[:, others] - middle[groups][:, others]) / side
        kernels.add_up(
            np.arange(len(rows)), groups, np.ascontiguousarray(points[:, axis]), across,
            self.values[rows], place, _HALF, gram, right, square, count,
        )  # fmt: skip
        gram += np.tril(gram, -1).transpose(0, 2, 1)
        told = count >= _ENOUGH
        return _solved(gram[told], right[told], middle[told])

    @cached_property
    def _sorted(self) -> list[tuple[Rows, Floats, Rows]]:
        """Rows along each axis, their places and the columns of pieces that hold them."""
        return [self._sorted_along(axis) for axis in range(self.points.shape[1])]

    @cached_property
    def _first(self) -> Rows:
        """The first piece along every axis, and how many there are."""
        pieces = np.floor(self.points / _PIECE[self.points.shape[1]]).astype(np.int64)
        low = pieces.min(axis=0) if len(pieces) else np.zeros(pieces.shape[1], dtype=np.int64)
        high = pieces.max(axis=0) if len(pieces) else low
        return np.stack([low, high - low + 1])

    def _sorted_along(self, axis: int) -> tuple[Rows, Floats, Rows]:
        """Sort the pairs along an axis; of very many those of some columns of pieces."""
        ndim = self.points.shape[1]
        low, count = self._first
        columns = np.zeros(len(self.points), dtype=np.int64)
        for other in (a for a in range(ndim) if a != axis):
            piece = np.floor(self.points[:, other] / _PIECE[ndim]).astype(np.int64)
            columns = columns * count[other] + piece - low[other]
        rows = np.arange(len(self.points))
        if len(rows) > _MOST:
            distinct = np.unique(columns)
            kept = distinct[:: -(-len(rows) // _MOST)]
            rows = rows[np.isin(columns, kept)]
        order = rows[np.argsort(self.points[rows, axis], kind="stable")]
        return order, self.points[order, axis], columns[order]

    def _pieces(self, axis: int, columns: Rows) -> Rows:
        """Return the numbers (C, D - 1) of the pieces of some columns along the other axes."""
        low, count = self._first
        out = []
        for other in [a for a in range(self.points.shape[1]) if a != axis][::-1]:
            out.append(columns % count[other] + low[other])
            columns = columns // count[other]
        return np.stack(out[::-1], axis=1)

    @cached_property
    def _tried(self) -> list[tuple[Floats, list[Steps]]]:
        """The planes that are looked at along each axis, and the steps across them."""
        tried = []
        for axis, (_, along, _) in enumerate(self._sorted):
            places = np.empty(0)
            if len(along):
                # Only where there are pairs, and some on both sides.
                places = _STRIDE * (np.unique(np.floor(along / _STRIDE)) + 0.5)
                inside = (places > along[0] + _HALF / 2) & (places < along[-1] - _HALF / 2)
                places = places[inside]
            tried.append((places, [self.steps(axis, float(place)) for place in places]))
        return tried

    @cached_property
    def _usual(self) -> tuple[float, float]:
        """What a step explains of noise and of a field that bends: usual, and its spread."""
        gains = np.array([s.gain / s.jump.size for _, t in self._tried for s in t if s.jump.size])
        if not len(gains):
            return math.inf, 0.0
        middle = float(np.median(gains))
        spread = 1.4826 * float(np.median(np.abs(gains - middle)))
        return max(middle, self.sigma**2, 1e-4 * _LEAST**2), spread

    def _clearest(self, found: list[list[float]]) -> tuple[float, int, float]:
        """Return how clear the clearest plane is that is left, its axis and its place."""
        best, usual = (0.0, 0, 0.0), self._usual
        for axis, (places, tried) in enumerate(self._tried):
            for place, every in zip(places, tried, strict=True):
                if any(abs(place - other) < _APART * _HALF for other in found[axis]):
                    continue
                clearness = self._clearness(every.uncut(found, axis), usual)
                if clearness > best[0]:
                    best = clearness, axis, float(place)
        return best

    def _clearness(self, steps: Steps, usual: tuple[float, float]) -> float:
        """Return how much more the steps of a plane explain than chance and bends do, or 0."""
        num = steps.jump.size
        if num == 0 or steps.size(usual[0]) < max(_LARGE * self.sigma, _LEAST):
            return 0.0
        excess = steps.gain / num - usual[0]
        by_noise = excess / (usual[0] * math.sqrt(2 / num))
        by_others = excess / max(usual[1], 1e-300)
        score = min(by_noise, by_others)
        return score if score > _CERTAIN else 0.0

    def _closer(self, axis: int, place: float) -> float:
        """Return where near a plane the step explains most."""
        near = place + np.arange(-_STRIDE, _STRIDE + 1e-9, _CLOSELY)
        return float(max(near, key=lambda p: self.steps(axis, float(p)).gain))

    def _consistent(self, planes: list[Floats]) -> list[Floats]:
        """Leave out planes whose pieces do not jump alike, as those of fields of view do."""
        while any(map(len, planes)):
            shifts = self.shifts(planes)
            shares = [
                (self._share(planes, shifts, axis, k), axis, k)
                for axis, places in enumerate(planes)
                for k in range(len(places))
            ]
            least, axis, k = min(shares)
            if least >= _ALIKE:
                break
            planes = [np.delete(p, k) if a == axis else p for a, p in enumerate(planes)]
        return planes

    def _share(self, planes: list[Floats], shifts: Floats, axis: int, k: int) -> float:
        """Return what jumps from field of view to field of view explain of a plane's steps."""
        steps = self.steps(axis, float(planes[axis][k])).uncut(planes, axis)
        index = list(cells(steps.middle, planes))
        both = []
        for side in (k + 1, k):
            index[axis] = np.full(len(steps.middle), side)
            both.append(shifts[tuple(index)])
        left = Steps(steps.jump - (both[0] - both[1]), steps.weight, steps.middle)
        noise = self._usual[0] * steps.jump.size
        return 1.0 - max(left.gain - noise, 0.0) / max(steps.gain - noise, 1e-300)


def _solved(gram: Floats, right: Floats, middle: Floats) -> Steps:
    """Return the steps that normal equations (G, P, P) and (G, P, D) give, the last regressor."""
    size = gram.shape[1]
    ridge = 1e-9 * np.trace(gram, axis1=1, axis2=2)
    inner = gram[:, :-1, :-1] + ridge[:, None, None] * np.eye(size - 1)
    rest = np.linalg.solve(inner, np.concatenate([gram[:, :-1, -1:], right[:, :-1]], axis=2))
    column = gram[:, -1:, :-1]
    weight = gram[:, -1, -1] - (column @ rest[:, :, :1])[:, 0, 0]
    step = right[:, -1] - (column @ rest[:, :, 1:])[:, 0]
    good = weight > 1e-3 * gram[:, 0, 0]
    return Steps(step[good] / weight[good, None], weight[good], middle[good])
