"""Exact percentiles of volumes that are read block by block, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.errors import InputError

__all__ = ["RankSearch", "percentile_ranks", "percentile_value"]

_DIGIT = 16  # bits that one reading of the volume decides; fewer for types of one byte


@dataclass(frozen=True, kw_only=True)
class RankSearch:
    """The search for the values of some ranks among all voxels, one digit a reading.

    Values become whole numbers of the same order, of which each reading counts one digit of 16
    bits, the highest first: one reading for types of up to two bytes, two for four bytes, four
    for eight.

    Parameters
    ----------
    dtype : dtype
        Of the voxels: bool, integers or floats of up to eight bytes.
    prefixes : tuple of int
        The digits known of each rank's value.
    rests : tuple of int
        Each rank among the voxels that begin with its prefix.
    bits_left : int
        How many bits of the values are not known yet.

    Examples
    --------
    >>> search = RankSearch.begin(np.uint8, [0, 2])
    >>> counts = search.counts()
    >>> search.add(np.array([7, 3, 5], dtype=np.uint8), counts)
    >>> search.narrow(counts).values.tolist()
    [3.0, 7.0]
    """

    dtype: np.dtype[Any]
    prefixes: tuple[int, ...]
    rests: tuple[int, ...]
    bits_left: int

    @classmethod
    def begin(cls, dtype: Any, ranks: list[int]) -> RankSearch:
        """Return the search for ranks (0 is the smallest value) before the first reading."""
        kind = np.dtype(dtype).newbyteorder("=")
        if kind.kind not in "buif" or kind.itemsize > 8:
            raise InputError(
                f"Cannot tell percentiles of voxels of type {kind}. Use integers or floats of up "
                "to eight bytes."
            )
        return cls(
            dtype=kind,
            prefixes=(0,) * len(ranks),
            rests=tuple(ranks),
            bits_left=8 * kind.itemsize,
        )

    @property
    def is_done(self) -> bool:
        """Whether all values are known."""
        return self.bits_left == 0

    @property
    def values(self) -> NDArray[np.float64]:
        """The values of the ranks, once the search is done."""
        return _from_order(self.prefixes, self.dtype).astype(np.float64)

    @property
    def _digit(self) -> int:
        """How many bits the next reading decides."""
        return min(_DIGIT, self.bits_left)

    def counts(self) -> NDArray[np.int64]:
        """Return (P, 2^16) zeros to count into: a row for each prefix."""
        return np.zeros((len(set(self.prefixes)), 2**self._digit), dtype=np.int64)

    def add(self, block: NDArray[Any], counts: NDArray[np.int64]) -> None:
        """Count the next digit of the voxels of a block, all finite, into `counts`."""
        order = _in_order(block).ravel()
        digits = order >> order.dtype.type(self.bits_left - self._digit)
        for row, prefix in enumerate(sorted(set(self.prefixes))):
            if self.bits_left < 8 * self.dtype.itemsize:
                known = digits >> digits.dtype.type(self._digit)
                chosen = digits[known == known.dtype.type(prefix)]
            else:
                chosen = digits
            last = chosen & chosen.dtype.type(2**self._digit - 1)
            counts[row] += np.bincount(last.astype(np.int64), minlength=counts.shape[1])

    def narrow(self, counts: NDArray[np.int64]) -> RankSearch:
        """Return the search after a reading whose digits are counted."""
        rows = {prefix: row for row, prefix in enumerate(sorted(set(self.prefixes)))}
        prefixes, rests = [], []
        for prefix, rest in zip(self.prefixes, self.rests, strict=True):
            below = np.cumsum(counts[rows[prefix]])
            digit = int(np.searchsorted(below, rest, side="right"))
            prefixes.append((prefix << self._digit) + digit)
            rests.append(rest - (int(below[digit - 1]) if digit else 0))
        return replace(
            self,
            prefixes=tuple(prefixes),
            rests=tuple(rests),
            bits_left=self.bits_left - self._digit,
        )


def _in_order(values: NDArray[Any]) -> NDArray[Any]:
    """Return unsigned integers of the same width that are ordered as the values."""
    array = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    width = 8 * array.dtype.itemsize
    bits = array.view(f"u{array.dtype.itemsize}")
    sign = bits.dtype.type(1 << (width - 1))
    if array.dtype.kind in "bu":
        return bits
    if array.dtype.kind == "i":
        return np.asarray(bits ^ sign)
    # Negative floats grow in the wrong direction.
    return np.where(bits & sign, ~bits, bits | sign)


def _from_order(order: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values that `_in_order` made these of."""
    bits = np.array(order, dtype=f"u{dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * dtype.itemsize - 1))
    if dtype.kind == "i":
        bits = bits ^ sign
    elif dtype.kind == "f":
        bits = np.where(bits & sign, bits ^ sign, ~bits)
    return bits.view(dtype)


def percentile_ranks(count: int, percentile: float) -> tuple[int, int]:
    """Return the two ranks between which a percentile of `count` values lies."""
    rank = (count - 1) * (percentile / 100)
    low = math.floor(rank)
    return low, min(low + 1, count - 1)


def percentile_value(count: int, percentile: float, low: float, high: float) -> float:
    """Return a percentile, to the last bit as `numpy.percentile`, of the values of its ranks."""
    share = (count - 1) * (percentile / 100) % 1
    if share < 0.5:
        return low + (high - low) * share
    return high - (high - low) * (1 - share)
