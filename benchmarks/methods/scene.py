"""What a method gets and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.points import Spots
from tilereg.synthetic import BenchmarkPair

Floats = NDArray[np.float64]
PointMap = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A pair of images and the spots in them."""

    pair: BenchmarkPair
    """Where the images are from; only oracles may look at its truth."""
    reference: NDArray[np.uint8]
    """The fixed image; without voxels where nobody looks at images."""
    moving: NDArray[np.uint8]
    fixed_spots: Spots
    """Spots of the fixed image, in the world, axes z, y, x."""
    moving_spots: Spots
    spacing: Floats
    """(3,) size of a voxel; the origin is voxel 0."""

    @property
    def fixed(self) -> Floats:
        """(N, 3) places of the fixed spots in the world."""
        return self.fixed_spots.positions

    @property
    def moved(self) -> Floats:
        """(M, 3) places of the moving spots in the world."""
        return self.moving_spots.positions


@dataclass(frozen=True, kw_only=True, eq=False)
class Recovered:
    """What a method found.

    `map` takes (N, 3) points of the fixed world to the moving world.
    """

    map: PointMap
    image: NDArray[Any] | None = None
    """The registered image, where the method makes one itself."""
    status: str = "ok"
    """'ok', or what the method says of its own result."""
    details: dict[str, Any] = field(default_factory=dict)
    """What is worth keeping: settings that it chose, numbers of pairs."""


class Unavailable(Exception):
    """A method cannot run here, and why."""
