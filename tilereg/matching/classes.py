"""Classes of spots: what they may be, which both clouds have, and in which order they count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilereg.errors import InputError
from tilereg.matching.clouds import canonical_order

__all__ = ["Arrangement", "arrange", "check_classes"]

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Labels = NDArray[Any]

_MOST_NAMED = 3


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The spots that take part, in an order that follows from the points alone.

    Parameters
    ----------
    rows : pair of int ndarrays
        Rows of either cloud, in canonical order; those of a class that the other cloud lacks are
        left out.
    numbers : pair of int ndarrays, optional
        Class of each of these spots, counted from 0; None where there are no classes.
    alone : dict
        Number of spots of each class that only one cloud has, by 'fixed' and 'moving'.
    weights : pair of ndarrays, optional
        Weight of each of these spots; None where all are 1.
    """

    rows: tuple[Rows, Rows]
    numbers: tuple[Rows, Rows] | None
    alone: dict[str, dict[str, int]]
    weights: tuple[Floats | None, Floats | None] = (None, None)

    @property
    def message(self) -> str:
        """What is left out, in a sentence; nothing where all spots take part."""
        parts = []
        for role, classes in self.alone.items():
            if classes:
                names = [f"'{name}'" for name in list(classes)[:_MOST_NAMED]]
                if len(classes) > _MOST_NAMED:
                    names.append(f"{len(classes) - _MOST_NAMED} more")
                parts.append(
                    f"{sum(classes.values())} {role} spots of a class that only this cloud has "
                    f"({', '.join(names)})"
                )
        return f"Left out: {'; '.join(parts)}." if parts else ""


def check_classes(
    fixed_class: ArrayLike | None, moving_class: ArrayLike | None, num_fixed: int, num_moving: int
) -> tuple[Labels, Labels] | None:
    """Return the classes of two clouds as arrays, or say what is wrong with them.

    Raises
    ------
    InputError
        If only one cloud has classes, their number is not that of the spots, they are neither
        integers nor text, they differ in kind, or no class is in both clouds.
    """
    if fixed_class is None and moving_class is None:
        return None
    if fixed_class is None or moving_class is None:
        given, lacking = ("moving", "fixed") if fixed_class is None else ("fixed", "moving")
        raise InputError(
            f"The {given} spots have classes, the {lacking} spots have none. Give both or neither."
        )
    ours = _labels(fixed_class, num_fixed, "fixed")
    theirs = _labels(moving_class, num_moving, "moving")
    # No spots have no kind of class.
    if len(ours) and len(theirs) and ours.dtype.kind != theirs.dtype.kind:
        kinds = [{"i": "integers", "U": "text"}[labels.dtype.kind] for labels in (ours, theirs)]
        raise InputError(
            f"Classes of the fixed spots are {kinds[0]}, of the moving spots {kinds[1]}. "
            "Give the same kind for both."
        )
    if len(ours) and len(theirs) and not np.isin(ours, theirs).any():
        named = [", ".join(map(repr, np.unique(c)[:_MOST_NAMED].tolist())) for c in (ours, theirs)]
        raise InputError(
            f"No class is in both clouds: the fixed spots have {named[0]}, the moving spots "
            f"{named[1]}. Name the same class the same in both."
        )
    return ours, theirs


def _labels(classes: ArrayLike, count: int, role: str) -> Labels:
    """Return the classes of a cloud as integers or text."""
    labels = np.asarray(classes)
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels.ravel()):
        labels = labels.astype(np.str_)
    if labels.dtype.kind == "u" and labels.max(initial=0) <= np.iinfo(np.int64).max:
        labels = labels.astype(np.int64)
    if labels.shape != (count,):
        raise InputError(
            f"Invalid shape {labels.shape} of the {role} classes. One a spot is needed: ({count},)."
        )
    if count == 0:
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iU":
        raise InputError(
            f"Invalid {role} classes of type {labels.dtype}. Each is an integer, or each is text."
        )
    return labels


def arrange(
    x: Floats,
    y: Floats,
    classes: tuple[Labels, Labels] | None,
    weights: tuple[Floats | None, Floats | None] = (None, None),
) -> Arrangement:
    """Put two clouds in canonical order, and number the classes that both have.

    The numbers follow from where the spots of a class are, not from its name: other names change
    nothing. Spots of weight 0 take no part.

    Parameters
    ----------
    x, y : (N, D), (M, D) ndarrays
    classes : pair of (N,), (M,) ndarrays, optional
        As `check_classes` returns them.
    weights : pair of (N,), (M,) ndarrays, optional
    """
    if weights[0] is None and weights[1] is None:
        return _arranged(x, y, classes)
    # Of spots at one place the light ones come first, whatever their rows.
    kept = [
        np.arange(len(cloud)) if weight is None else _by_weight(weight)
        for cloud, weight in zip((x, y), weights, strict=True)
    ]
    some = None if classes is None else (classes[0][kept[0]], classes[1][kept[1]])
    found = _arranged(x[kept[0]], y[kept[1]], some)
    rows = kept[0][found.rows[0]], kept[1][found.rows[1]]
    trust = [None if w is None else w[r] for w, r in zip(weights, rows, strict=True)]
    return replace(found, rows=rows, weights=(trust[0], trust[1]))


def _by_weight(weight: Floats) -> Rows:
    """Return the rows of spots that take part, by their weight."""
    order = np.argsort(weight, kind="stable")
    return order[weight[order] > 0]


def _arranged(x: Floats, y: Floats, classes: tuple[Labels, Labels] | None) -> Arrangement:
    """Put two clouds in canonical order, and number the classes that both have."""
    if classes is None:
        return Arrangement((canonical_order(x), canonical_order(y)), None, {})
    names, codes = np.unique(np.concatenate(classes), return_inverse=True)
    ours, theirs = codes[: len(x)], codes[len(x) :]
    counts = [np.bincount(c, minlength=len(names)) for c in (ours, theirs)]
    shared = (counts[0] > 0) & (counts[1] > 0)
    alone = {
        role: {str(names[k]): int(count[k]) for k in np.flatnonzero((count > 0) & ~shared)}
        for role, count in zip(("fixed", "moving"), counts, strict=True)
    }
    kept = [np.flatnonzero(shared[c]) for c in (ours, theirs)]
    places = [_places(cloud[rows]) for cloud, rows in zip((x, y), kept, strict=True)]
    labels = [c[rows] for c, rows in zip((ours, theirs), kept, strict=True)]
    numbers = _numbered(places, labels, len(names))
    # Spots of several classes at one place are in the order of the classes.
    orders = [np.lexsort((n, p)) for n, p in zip(numbers, places, strict=True)]
    return Arrangement(
        (kept[0][orders[0]], kept[1][orders[1]]),
        (numbers[0][orders[0]], numbers[1][orders[1]]),
        alone,
    )


def _places(points: Floats) -> Rows:
    """Return the rank (N,) of each point's place in canonical order."""
    order = canonical_order(points)
    ordered = points[order]
    is_new = np.ones(len(points), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    ranks = np.empty(len(points), dtype=np.int64)
    ranks[order] = np.cumsum(is_new)
    return ranks


def _numbered(places: list[Rows], labels: list[Rows], num_labels: int) -> list[Rows]:
    """Return numbers of the classes, in the order of their spots' places."""
    members = []
    for ranks, codes in zip(places, labels, strict=True):
        order = np.lexsort((ranks, codes))
        members.append(np.split(ranks[order], np.searchsorted(codes[order], range(1, num_labels))))
    keys = [tuple(m[k].tolist() for m in members) for k in range(num_labels)]
    present = sorted((k for k in range(num_labels) if keys[k][0]), key=lambda k: keys[k])
    numbers = np.zeros(num_labels, dtype=np.int64)
    numbers[present] = np.arange(len(present))
    return [numbers[codes] for codes in labels]
