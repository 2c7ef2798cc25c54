"""Connected voxels of a volume that is read block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from tilereg.windows import Window

__all__ = ["BlockComponents", "block_components", "joined_centroids"]

Labelled = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class BlockComponents:
    """The connected voxels of one block; voxels of a volume are numbered in C order."""

    counts: NDArray[np.int64]
    """(C,) voxels of each component."""
    sums: NDArray[np.float64]
    """(C, D) sums of their indices in the volume; whole numbers."""
    firsts: NDArray[np.int64]
    """(C,) number of the first voxel of each."""
    lower: tuple[Labelled, ...]
    """For each axis numbers and components of the voxels on the block's lower face, if it is
    inside the volume."""
    upper: tuple[Labelled, ...]
    """The same for the upper face."""


def block_components(
    mask: NDArray[np.bool_], window: Window, shape: Sequence[int]
) -> BlockComponents:
    """Find the connected voxels of a block; voxels with a common face are connected.

    Parameters
    ----------
    mask : ndarray of bool
        Of the window's shape.
    window : Window
        Where the block is.
    shape : (D,) ints
        Voxels of the volume.
    """
    labels, count = ndimage.label(mask)
    local = np.nonzero(labels)
    component = labels[local].astype(np.int64) - 1
    index = [at + start for at, start in zip(local, window.start, strict=True)]
    number = np.ravel_multi_index(index, tuple(shape)).astype(np.int64)
    sums = [np.bincount(component, weights=at, minlength=count) for at in index]

    def on(axis: int, plane: int) -> Labelled:
        at = local[axis] == plane
        return number[at], component[at]

    nothing = np.empty(0, np.int64), np.empty(0, np.int64)
    return BlockComponents(
        counts=np.bincount(component, minlength=count),
        sums=np.stack(sums, axis=-1),
        firsts=number[np.unique(component, return_index=True)[1]],
        lower=tuple(
            on(axis, 0) if start > 0 else nothing for axis, start in enumerate(window.start)
        ),
        upper=tuple(
            on(axis, n - 1) if stop < length else nothing
            for axis, (n, stop, length) in enumerate(
                zip(window.shape, window.stop, shape, strict=True)
            )
        ),
    )


def joined_centroids(
    blocks: Sequence[BlockComponents], shape: Sequence[int]
) -> NDArray[np.float64]:
    """Return the (N, D) centroids of the components of a volume, from those of its blocks.

    They are in the order of their first voxels, as those of `scipy.ndimage.label`.
    """
    if not blocks:
        return np.empty((0, len(shape)))
    offsets = np.cumsum([0, *(len(block.counts) for block in blocks)])
    total = int(offsets[-1])
    left, right = [], []
    for axis in range(len(shape)):
        step = math.prod(shape[axis + 1 :])
        above, below = (
            _gathered([side[axis] for side in sides], offsets)
            for sides in ([b.upper for b in blocks], [b.lower for b in blocks])
        )
        _, i, j = np.intersect1d(above[0] + step, below[0], assume_unique=True, return_indices=True)
        left.append(above[1][i])
        right.append(below[1][j])
    rows, columns = np.concatenate(left), np.concatenate(right)
    links = sparse.coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(total, total))
    count, whole = csgraph.connected_components(links, directed=False)
    counts = np.concatenate([block.counts for block in blocks])
    sums = np.concatenate([block.sums for block in blocks])
    firsts = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(firsts, whole, np.concatenate([block.firsts for block in blocks]))
    voxels = np.bincount(whole, weights=counts, minlength=count)
    centres = [np.bincount(whole, weights=s, minlength=count) / voxels for s in sums.T]
    return np.asarray(np.stack(centres, axis=-1)[np.argsort(firsts)])


def _gathered(faces: list[Labelled], offsets: NDArray[np.int64]) -> Labelled:
    """Return the voxels of one face of all blocks, components numbered through all of them."""
    numbers = np.concatenate([number for number, _ in faces])
    components = [c + first for (_, c), first in zip(faces, offsets, strict=False)]
    return numbers, np.concatenate(components)
