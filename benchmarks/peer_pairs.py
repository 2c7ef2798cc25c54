"""The pairs that tilereg and its peers register, on disk for both, and how results are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case, Truth
from benchmarks.easifish import TISSUE_FROM
from benchmarks.judge import judge_image, judge_map
from benchmarks.processes import CommandCost
from tilereg.grid import Grid
from tilereg.io.ome_zarr import create_image, open_image
from tilereg.metrics import NccSums
from tilereg.transform import Transform
from tilereg.warping import warp_array

EASIFISH = "easifish"
ROUNDS = ("fixed.ome.zarr", "moving.ome.zarr")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a tool made of a pair, and what it cost."""

    cost: CommandCost
    mapped: NDArray[np.float64]
    """(K, 3) where the pair's points go, in the world."""
    image: NDArray[Any]
    """The moving image on the fixed grid."""
    inside: NDArray[np.bool_]
    """Which voxels of the fixed grid the transform sends into the moving image."""
    transform_bytes: int
    details: dict[str, Any]


class Pair(Protocol):
    """Two images, and what is known of the map between them."""

    @property
    def key(self) -> str:
        """The same text for the same pair."""

    @property
    def input(self) -> str:
        """Name of the group that is reported together."""

    @property
    def images(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The fixed and the moving image."""

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Where their voxels are."""

    @property
    def points(self) -> NDArray[np.float64]:
        """(K, 3) where the map is asked for, in the world."""

    def judge(self, outcome: Outcome) -> dict[str, Any]:
        """Return figures of merit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticPair:
    """A pair of the published benchmark: judged by the true map."""

    case: Case

    @property
    def key(self) -> str:
        """The same text for the same pair."""
        return self.case.key

    @property
    def input(self) -> str:
        """Name of the deformation."""
        return self.case.field

    @cached_property
    def images(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Reference and moving image."""
        pair = self.case.make()
        return pair.reference, pair.moving

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Both are on one grid."""
        grid = self.case.make().grid
        return grid, grid

    @cached_property
    def truth(self) -> Truth:
        """Where the map is judged."""
        return Truth.of(self.case.make())

    @property
    def points(self) -> NDArray[np.float64]:
        """Spots of the reference, and a regular grid."""
        return self.grids[0].to_world(self.truth.points)

    def judge(self, outcome: Outcome) -> dict[str, Any]:
        """Return the errors of the map, and the similarities of the images."""
        reference, moving = self.images
        predicted = self.grids[0].to_index(outcome.mapped)
        return {
            "errors": judge_map(self.truth, predicted),
            "image": judge_image(reference, outcome.image, moving),
            "ncc_overlap": NccSums().add(reference, outcome.image, outcome.inside).ncc,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class TissuePair:
    """The EASI-FISH pair: judged by the correlation where there is tissue."""

    folder: Path
    key: str = EASIFISH
    input: str = EASIFISH

    @cached_property
    def images(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both rounds."""
        readers = [open_image(self.folder / f"round{n}.ome.zarr").reader() for n in (1, 2)]
        fixed, moving = (reader.read(reader.grid.window) for reader in readers)
        return fixed, moving

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Where the voxels are."""
        fixed, moving = (open_image(self.folder / f"round{n}.ome.zarr").grid for n in (1, 2))
        return fixed, moving

    @property
    def points(self) -> NDArray[np.float64]:
        """None are asked for: there is no truth."""
        return np.empty((0, 3))

    def judge(self, outcome: Outcome) -> dict[str, Any]:
        """Return the correlation in the overlap, before and after."""
        reference, moving = self.images
        mask = outcome.inside.copy()
        mask[:TISSUE_FROM] = False
        fixed, other = self.grids
        unmoved = warp_array(moving, Transform.identity(3), like=fixed, grid=other)
        return {
            "errors": None,
            "ncc_before": NccSums().add(reference, unmoved, mask).ncc,
            "ncc_overlap": NccSums().add(reference, outcome.image, mask).ncc,
            "overlap": float(mask[TISSUE_FROM:].mean()),
        }


def write_pair(pair: Pair, folder: Path) -> None:
    """Write both images as OME-Zarr 0.4, one level, in chunks that both tools read well."""
    for name, image, grid in zip(ROUNDS, pair.images, pair.grids, strict=True):
        writer = create_image(
            folder / name, grid=grid, dtype=image.dtype, axes=grid.axes, version="0.4", levels=1
        )
        for unit in writer.units():
            writer.write(unit.window, image[unit.window.slices])
        writer.finish()
