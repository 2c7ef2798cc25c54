from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scenes import Recorder, contents, rounds, voxels, write_image

from tilereg import pipeline
from tilereg.config import Settings
from tilereg.errors import ImageError, InputError, OutputError
from tilereg.io.ome_zarr import ZarrReader, open_image
from tilereg.lazy.execute import num_cpus
from tilereg.plan import plan
from tilereg.progress import Silent
from tilereg.stages import Source, detect_chunks, find_spots


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(assignments)


@pytest.fixture
def _no_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reading of voxels fail."""

    def fail(*_: object) -> None:
        raise AssertionError("Voxels were read.")

    monkeypatch.setattr(ZarrReader, "read", fail)


@pytest.mark.usefixtures("_no_voxels")
def test_tasks_voxels_and_bytes(tmp_path: Path) -> None:
    both = rounds()
    fixed = write_image(tmp_path / "fixed", voxels(both.fixed), both.fixed_grid)
    movie = np.zeros((2, 3, *both.moving.shape), dtype=np.float32)
    label = np.zeros(both.moving.shape, dtype=np.uint8)
    moving = write_image(
        tmp_path / "moving", movie, both.moving_grid, axes="tczyx", labels={"cells": label}
    )
    before = contents(tmp_path)
    chosen = settings(
        "output.chunks=[5,22,22]", "output.levels=2", "output.shards=[10,44,44]",
        "warp.channels=[0,2]", "compute.workers=3",
    )  # fmt: skip
    made = pipeline.plan(fixed, moving, tmp_path / "run", settings=chosen)
    assert contents(tmp_path) == before
    assert made.output == str(tmp_path / "run")
    assert made.num_detect_tasks == 2
    # Two times two channels and one label image, of 2 x 2 x 2 shards and one at the next level.
    assert made.num_warp_tasks == 8 * (2 * 2 + 1)
    assert made.num_pyramid_tasks == 2 * (2 * 2 + 1)
    fine, coarse = 20 * 88 * 88, 20 * 44 * 44
    assert made.voxels_written == (fine + coarse) * 5
    assert made.bytes_written == (fine + coarse) * (4 * 4 + 1)
    source = both.moving_grid.size
    detection = 2 * (fine + source)  # once for the spots, once for the judgement
    assert made.voxels_read == detection + 5 * (source + fine)
    assert made.bytes_read == 2 * (2 * fine + 4 * source) + (source + fine) * (4 * 4 + 1)
    assert made.num_threads == 3
    largest = max(made.detect_task_bytes, made.warp_task_bytes, made.pyramid_task_bytes)
    assert made.memory_bytes == max(3 * largest, made.sample_bytes)
    assert made.sample_bytes > 10 * source
    assert made.detect_task_bytes > 4 * source
    assert made.warp_task_bytes > 3 * 10 * 44 * 44 * 4


def test_what_is_shown(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    made = plan(*flat_pair, tmp_path / "run")
    rows = made.rows()
    assert [name for name, _ in rows] == [
        "output", "first look", "detection", "warp", "pyramid", "read", "written", "memory",
        "assumed", "assumed",
    ]  # fmt: skip
    shown = dict(rows)
    assert shown["detection"].startswith("2 tasks, up to ")
    assert shown["warp"].startswith("1 task, up to ")
    assert shown["pyramid"] == "none"
    assert shown["written"] == "25,600 voxels, 51.2 kB uncompressed"
    assert f"in {num_cpus()} thread" in shown["memory"]
    assert json.loads(json.dumps(made.as_dict(), allow_nan=False)) == made.as_dict()
    assert made.as_dict()["num_warp_tasks"] == 1
    cluster = plan(
        *flat_pair, tmp_path / "run",
        settings=settings("compute.scheduler='tcp://host:1'", "detect.sigma=0.4"),
    )  # fmt: skip
    assert len(cluster.assumed) == 2
    assert "cluster was not asked" in cluster.assumed[1]


def test_the_plan_is_kept(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    chosen = settings("output.chunks=[40,50]", "output.levels=2")
    made = plan(*flat_pair, tmp_path / "run", settings=chosen)
    told = Recorder()
    pipeline.register(*flat_pair, tmp_path / "run", settings=chosen, progress=told)
    assert made.num_warp_tasks == told.totals["warp"] == 16
    assert made.num_pyramid_tasks == told.totals["pyramid, level 1"] == 4
    detection = [told.totals[f"detect {role}"] for role in ("fixed", "moving")]
    assert made.num_detect_tasks == len(detection) == 2


@pytest.mark.usefixtures("_no_voxels")
def test_a_plan_refuses_what_the_run_would(
    flat_pair: tuple[str, str], pair: tuple[str, str], finished: pipeline.Run, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="Nothing is at"):
        plan(flat_pair[0], tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(InputError, match="no common axes"):
        plan(flat_pair[0], pair[1], tmp_path / "run")
    with pytest.raises(InputError, match="No channel 3"):
        plan(*flat_pair, tmp_path / "run", settings=settings("warp.channels=[3]"))
    with pytest.raises(OutputError, match="holds a run already"):
        plan(*pair, finished.output)
    plan(*pair, finished.output, overwrite=True)
    plan(*pair, finished.output, resume=True)
    with pytest.raises(OutputError, match="not the folder of a run"):
        plan(*pair, Path(finished.output).parent, overwrite=True)
    with pytest.raises(OutputError, match="lies in the output"):
        plan(*pair, Path(pair[0]).parent)


@pytest.mark.parametrize(
    ("shape", "chunks", "want"),
    [
        ((100, 2000, 2000), (100, 100, 100), (100, 200, 200)),
        ((50, 60, 70), (10, 10, 10), (50, 60, 70)),
        ((400, 1000, 1000), (400, 1000, 1000), (400, 250, 250)),
        ((30_000, 30_000), (512, 512), (2048, 2048)),
        ((30_000, 30_000), (1, 30_000), (256, 30_000)),
        ((1, 40_000, 40_000), (1, 40_000, 40_000), (1, 5000, 5000)),
    ],
)
def test_blocks_of_a_detection(
    shape: tuple[int, ...], chunks: tuple[int, ...], want: tuple[int, ...]
) -> None:
    class Reader:
        def __init__(self) -> None:
            self.shape, self.chunks = shape, chunks

    found = detect_chunks(Reader())  # type: ignore[arg-type]
    assert found == want
    assert 4_000_000 <= np.prod(found) <= 32_000_000 or found == shape


def test_detection_says_which_image(tmp_path: Path) -> None:
    both = rounds(2)
    spoilt = voxels(both.fixed).astype(np.float32)
    spoilt[3, 4] = np.nan
    image = open_image(write_image(tmp_path / "image", spoilt, both.fixed_grid))
    with pytest.raises(ImageError, match=r"In '.*image' .*: Voxel \(3, 4\)"):
        find_spots(Source(image, 0, 0, 0), settings("detect.sigma=0.4"), None, Silent(), "detect")
