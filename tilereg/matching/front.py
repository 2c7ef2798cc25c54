"""Which tiles can be matched next: a front that moves outwards from where the pose is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilereg.matching.tiles import Tile, TileMatch

__all__ = ["Front"]

Floats = NDArray[np.float64]

# How much farther from the middle the next ring reaches.
_FARTHER = 2.0


@dataclass(eq=False, kw_only=True)
class Front:
    """The tiles, and what has been tried.

    Parameters
    ----------
    tiles : sequence of Tile
        By their numbers.
    box : pair of (D,) ndarrays, micrometre
        Of the fixed spots.
    centre : (D,) ndarray, micrometre, optional
        Where the pose was found; None where it is known everywhere.
    tried : dict
        By the number of a tile how many good ones it touched when it was tried last.
    """

    tiles: Sequence[Tile]
    box: tuple[Floats, Floats]
    centre: Floats | None
    tried: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Work out once which tiles touch which, and how far from the centre they are."""
        low, high = (np.array([getattr(t, side) for t in self.tiles]) for side in ("low", "high"))
        self._beside = []
        for k in range(len(low)):
            touches = ((low[k] <= high) & (low <= high[k])).all(axis=1)
            touches[k] = False
            self._beside.append(np.flatnonzero(touches))
        self._gap, self._far = np.zeros(len(low)), np.zeros(len(low))
        if self.centre is not None:
            inner, outer = np.maximum(low, self.box[0]), np.minimum(high, self.box[1])
            apart = np.maximum(np.maximum(inner - self.centre, self.centre - outer), 0.0)
            self._gap = np.linalg.norm(apart, axis=1)
            ends = np.maximum(np.abs(inner - self.centre), np.abs(outer - self.centre))
            self._far = np.linalg.norm(ends, axis=1)

    def next_ring(self, matches: Mapping[int, TileMatch]) -> list[Tile]:
        """Return the tiles to match: new ones, and others beside new successes.

        In the end, what no success leads to is tried from where it is.
        """
        good = np.array([k in matches and matches[k].is_ok for k in range(len(self.tiles))])
        touching = np.array([int(good[beside].sum()) for beside in self._beside])
        unseen = np.array([k not in matches for k in range(len(self.tiles))])
        if not matches and self.centre is not None:
            ring = np.array([tile.owns(self.centre[None])[0] for tile in self.tiles])
        elif good.any():
            reach = _FARTHER * float(self._far[good].max())
            last = np.array([self.tried.get(k, 0) for k in range(len(self.tiles))])
            again = ~unseen & ~good & (touching > last)
            ring = again | (unseen & ((touching > 0) | (self._gap <= reach)))
        else:
            ring = unseen
        if not ring.any():
            ring = unseen
        chosen = np.flatnonzero(ring)
        self.tried |= {int(k): int(touching[k]) for k in chosen}
        return [self.tiles[int(k)] for k in chosen]
