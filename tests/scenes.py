"""Small synthetic rounds on disk, for the tests that run everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilereg.grid import Grid
from tilereg.io.ome_zarr import OmeZarrImage, create_image, open_image
from tilereg.synthetic import SyntheticRounds, SyntheticVolume, demo_rounds
from tilereg.windows import Window

SHAPES = {2: (160, 160), 3: (20, 88, 88)}
SPACINGS = {2: (0.3, 0.3), 3: (0.6, 0.3, 0.3)}
NUM_SPOTS = {2: 250, 3: 400}
RUN_FILES = {
    "matches.parquet",
    "progress",
    "qc.json",
    "registered.ome.zarr",
    "run.toml",
    "spots_fixed.parquet",
    "spots_moving.parquet",
    "transform.ome.zarr",
}


@cache
def rounds(ndim: int = 3, seed: int = 0) -> SyntheticRounds:
    """Return two small rounds."""
    return demo_rounds(
        SHAPES[ndim],
        spacing=SPACINGS[ndim],
        num_spots=NUM_SPOTS[ndim],
        shift=8.0,
        bump=2.5,
        seed=seed,
    )


def on_grid(volume: SyntheticVolume, grid: Grid, shift: NDArray[np.float64]) -> SyntheticVolume:
    """Return the same spots on another grid, all moved by `shift` micrometre."""
    world = volume.grid.to_world(volume.positions_index) + shift
    sigma = np.multiply(volume.sigma_voxels, volume.grid.spacing) / grid.spacing
    return SyntheticVolume(
        grid=grid,
        positions_index=grid.to_index(world),
        amplitudes=volume.amplitudes,
        sigma_voxels=tuple(sigma),
        seed=volume.seed,
    )


def voxels(volume: SyntheticVolume) -> NDArray[Any]:
    """Return all voxels of a volume."""
    return volume.read(Window.whole(volume.shape))


def write_image(
    path: Path | str,
    array: NDArray[Any],
    grid: Grid,
    *,
    axes: str | None = None,
    labels: Mapping[str, NDArray[Any]] | None = None,
    channels: Sequence[str] = (),
    **options: Any,
) -> str:
    """Write an array with all its axes as OME-Zarr, with labels; return its location."""
    names = tuple(axes or "".join(grid.axes))
    lead = dict(zip(names, array.shape, strict=True))
    num_channels, num_times = lead.get("c", 1), lead.get("t", 1)
    if "c" in lead and not channels:
        channels = [f"round {n}" for n in range(num_channels)]
    volumes = array.reshape(num_times, num_channels, *grid.shape)
    writer = create_image(
        path,
        grid=grid,
        dtype=array.dtype,
        axes=names,
        channels=channels,
        num_times=num_times,
        **options,
    )
    for level in range(len(writer.level_grids)):
        for unit in writer.units(level):
            for time in range(num_times):
                for channel in range(num_channels):
                    place = {"channel": channel, "time": time}
                    if level:
                        writer.downsample(level, unit.window, **place)
                    else:
                        block = volumes[time, channel][unit.window.slices]
                        writer.write(unit.window, block, **place)
    writer.finish()
    version = options.get("version", "0.5")
    for name, values in (labels or {}).items():
        place = f"{path}/labels/{name}"
        write_image(place, values, grid, is_label=True, version=version, levels=1)
    return str(path)


def write_rounds(folder: Path, ndim: int = 3, **options: Any) -> tuple[str, str]:
    """Write both rounds as plain volumes; return their locations."""
    both = rounds(ndim)
    places = []
    for name, volume in (("fixed", both.fixed), ("moving", both.moving)):
        place = folder / f"{name}.ome.zarr"
        places.append(write_image(place, voxels(volume), volume.grid, **options))
    return places[0], places[1]


def read_image(
    image: OmeZarrImage | str | Path, level: int = 0, channel: int = 0, time: int = 0
) -> NDArray[Any]:
    """Return one volume of an image."""
    opened = image if isinstance(image, OmeZarrImage) else open_image(image)
    reader = opened.reader(level=level, channel=channel, time=time)
    return reader.read(Window.whole(reader.shape))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Recorder:
    """Keeps what a run reports."""

    totals: dict[str, int | None] = field(default_factory=dict)
    steps: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Any]:
        """Keep the steps of a stage."""
        self.totals[name], self.steps[name] = total, []
        yield _RecordedStage(self.steps[name])

    def note(self, text: str) -> None:
        """Keep a line."""
        self.notes.append(text)


@dataclass
class _RecordedStage:
    steps: list[int]

    def advance(self, steps: int = 1) -> None:
        self.steps.append(steps)
