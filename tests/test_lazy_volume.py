from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from scenes import Recorder, read_image, write_image

from tilereg.errors import ResourceError
from tilereg.grid import Grid
from tilereg.io.ome_zarr import ImageWriter, OmeZarrImage, create_image, open_image
from tilereg.lazy.budget import num_threads, task_budget
from tilereg.lazy.execute import num_cpus
from tilereg.lazy.volume import EMPTY, OK, build_levels, level_bytes, warp_volume
from tilereg.memory import task_bytes
from tilereg.progress import Silent
from tilereg.transform import Affine, DisplacementField, Transform
from tilereg.warping import WarpPlan, warp_array

FIXED = Grid(shape=(11, 40, 52), spacing=(1.0, 0.5, 0.4), origin=(2.0, -1.0, 0.0))
MOVING = Grid(shape=(14, 30, 50), spacing=(0.8, 0.6, 0.5))


@dataclass
class Notes:
    """Remembers units in memory."""

    numbers: set[int] = field(default_factory=set)
    num_flushed: int = 0

    def read(self) -> set[int]:
        return set(self.numbers)

    def add(self, number: int) -> None:
        self.numbers.add(number)

    def flush(self) -> None:
        self.num_flushed += 1


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> OmeZarrImage:
    """Return an image of two times and three channels."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 4000, (2, 3, *MOVING.shape), dtype=np.uint16)
    place = tmp_path_factory.mktemp("moving") / "moving.zarr"
    return open_image(write_image(place, array, MOVING, axes="tczyx", chunks=(5, 16, 16)))


@pytest.fixture(scope="module")
def plan() -> WarpPlan:
    rng = np.random.default_rng(1)
    field = DisplacementField(
        rng.normal(scale=1.5, size=(6, 7, 7, 3)), [-4.0, -8.0, -6.0], [5.0, 6.0, 6.0]
    )
    affine = Affine(np.eye(3), [-1.0, 2.0, 4.0])
    return WarpPlan(
        transform=Transform(affine, field), grid=FIXED, moving_grid=MOVING,
        dtype=np.dtype(np.uint16), fill_value=3,
    )  # fmt: skip


def make_writer(path: Path, chunks: Iterable[int] = (4, 16, 16), levels: int = 1) -> ImageWriter:
    """Return the writer of an image of two times and two channels."""
    return create_image(
        path,
        grid=FIXED,
        dtype=np.uint16,
        axes=tuple("tczyx"),
        channels=("c", "a"),
        num_times=2,
        chunks=tuple(chunks),
        levels=levels,
    )


@pytest.mark.parametrize("where", ["threads", "workers"])
@pytest.mark.parametrize("chunks", [(11, 40, 52), (3, 40, 7)])
def test_every_channel_and_time(
    moving: OmeZarrImage,
    plan: WarpPlan,
    tmp_path: Path,
    client: Client,
    where: str,
    chunks: tuple[int, ...],
) -> None:
    writer = make_writer(tmp_path / "image", chunks)
    told = Recorder()
    counts = warp_volume(
        moving, writer, plan, channels=[2, 0], times=range(2),
        client=client if where == "workers" else None, progress=told, title="the warp",
    )  # fmt: skip
    assert sum(counts.values()) == told.totals["the warp"] == sum(told.steps["the warp"])
    image = writer.finish()
    for time in range(2):
        for channel, source in enumerate((2, 0)):
            want = warp_array(
                read_image(moving, 0, source, time), plan.transform,
                like=FIXED, grid=MOVING, fill_value=3,
            )  # fmt: skip
            assert np.array_equal(read_image(image, 0, channel, time), want)


def test_units_outside_are_filled(moving: OmeZarrImage, plan: WarpPlan, tmp_path: Path) -> None:
    far = WarpPlan(
        transform=Transform(Affine(np.eye(3), [0.0, 0.0, 15.0])), grid=FIXED, moving_grid=MOVING,
        dtype=plan.dtype, fill_value=3,
    )  # fmt: skip
    writer = make_writer(tmp_path / "image", (11, 40, 4))
    counts = warp_volume(moving, writer, far, channels=[0], times=[0], progress=Silent())
    assert counts == {OK: 7, EMPTY: 6}
    assert (read_image(writer.finish())[..., 28:] == 3).all()


def test_a_limit_changes_nothing(moving: OmeZarrImage, plan: WarpPlan, tmp_path: Path) -> None:
    images = []
    needed = task_bytes(plan, FIXED.window)
    for limit in (None, needed, needed - 20_000):
        writer = make_writer(tmp_path / str(limit), FIXED.shape)
        warp_volume(moving, writer, plan, channels=[1], times=[0], progress=Silent(), limit=limit)
        images.append(read_image(writer.finish()))
    assert np.array_equal(images[0], images[1])
    assert np.array_equal(images[0], images[2])
    with pytest.raises(ResourceError):
        warp_volume(moving, writer, plan, channels=[1], times=[0], progress=Silent(), limit=1000)


def test_finished_units_are_left_alone(
    moving: OmeZarrImage, plan: WarpPlan, tmp_path: Path
) -> None:
    writer = make_writer(tmp_path / "image", (11, 20, 26), levels=2)
    how: dict[str, Any] = {"channels": [0, 1], "times": [0], "progress": Silent()}
    notes = Notes({0, 3, 7})
    told = Recorder()
    counts = warp_volume(moving, writer, plan, finished=notes, **(how | {"progress": told}))
    assert sum(counts.values()) == 5
    assert told.steps["warp"] == [3, 1, 1, 1, 1, 1]
    assert notes.numbers == set(range(8))
    assert notes.num_flushed == 1
    whole = make_writer(tmp_path / "whole", (11, 20, 26), levels=2)
    warp_volume(moving, whole, plan, **how)
    levels = {1: Notes({1})}
    build_levels(writer, 2, 1, progress=told, title="coarser", finished=levels.__getitem__)
    build_levels(whole, 2, 1, progress=Silent())
    assert told.steps["coarser, level 1"] == [1, *[1] * (told.totals["coarser, level 1"] - 1)]
    for level, skipped in ((0, {0, 3, 7}), (1, {1})):
        ours, theirs = writer.finish(), whole.finish()
        number = 0
        for unit in writer.units(level):
            for channel in range(2):
                block = read_image(ours, level, channel)[unit.window.slices]
                want = read_image(theirs, level, channel)[unit.window.slices]
                if level == 0:
                    assert np.array_equal(block, want if number not in skipped else 0 * want)
                elif number in skipped:
                    assert not block.any()
                number += 1


def test_notes_last_after_an_error(
    moving: OmeZarrImage, plan: WarpPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = make_writer(tmp_path / "image", (11, 20, 26))
    write, left = ImageWriter.write, [3]

    def fail(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("No room for voxels.")
        write(*arguments, **options)

    monkeypatch.setattr(ImageWriter, "write", fail)
    notes = Notes()
    with pytest.raises(OSError, match="No room"):
        warp_volume(
            moving, writer, plan, channels=[0], times=[0], progress=Silent(), finished=notes,
            num_workers=1,
        )  # fmt: skip
    assert notes.numbers == {0, 1, 2}
    assert notes.num_flushed == 1

    def fail_too() -> None:
        raise OSError("No space for notes.")

    monkeypatch.setattr(notes, "flush", fail_too)
    with pytest.raises(OSError, match="No room for voxels"):
        warp_volume(
            moving, writer, plan, channels=[0], times=[0], progress=Silent(), finished=notes
        )


def test_levels_are_the_means_of_the_level_below(
    moving: OmeZarrImage, plan: WarpPlan, tmp_path: Path, client: Client
) -> None:
    images = []
    for number, (chunks, where) in enumerate([((4, 8, 9), None), ((11, 40, 52), client)]):
        writer = make_writer(tmp_path / str(number), chunks, levels=3)
        warp_volume(moving, writer, plan, channels=[0, 1], times=[0, 1], progress=Silent())
        build_levels(writer, 2, 2, client=where, progress=Silent())
        images.append(writer.finish())
    for level in range(3):
        assert np.array_equal(
            read_image(images[0], level, 1, 1), read_image(images[1], level, 1, 1)
        )
    fine, coarse = read_image(images[0], 0), read_image(images[0], 1)
    assert coarse.shape == (11, 20, 26)
    means = fine.reshape(11, 20, 2, 26, 2).mean(axis=(2, 4))
    assert np.array_equal(coarse, np.rint(means))


def test_memory_of_a_level(tmp_path: Path) -> None:
    one = make_writer(tmp_path / "one", (11, 40, 52))
    assert level_bytes(one) == 0
    small = make_writer(tmp_path / "small", (1, 8, 8), levels=3)
    large = make_writer(tmp_path / "large", (11, 40, 52), levels=3)
    # Voxels of two bytes, their sum, and what becomes of it; level 2 halves z as well.
    assert level_bytes(small) == 8 * 8 * (8 * 2 + 24)
    assert level_bytes(large) == 11 * 20 * 26 * (4 * 2 + 24)


def test_budget_of_threads() -> None:
    assert num_threads() == num_cpus()
    assert num_threads(workers=7) == 7
    assert task_budget() > 0
    assert task_budget(memory="10GB") == int((8e9 - 250e6) / num_cpus())
    assert task_budget(memory="100MB") == 0


def test_budget_of_workers(client: Client) -> None:
    assert num_threads(client) == 2
    limit = min(w["memory_limit"] for w in client.scheduler_info()["workers"].values())
    assert task_budget(client) == int(0.8 * limit - 250e6)
    assert task_budget(client, "2GB") == int(1.6e9 - 250e6)
