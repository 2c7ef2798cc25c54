from __future__ import annotations

import os
from pathlib import Path

import pytest
from scenes import SHAPES, SPACINGS, Recorder, contents

from tilereg import demo as demo_module
from tilereg.demo import DemoResult, demo
from tilereg.errors import InputError, OutputError
from tilereg.io.ome_zarr import open_image
from tilereg.synthetic import demo_rounds


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the rounds of the demo small."""

    def small(*, seed: int) -> object:
        return demo_rounds(SHAPES[2], spacing=SPACINGS[2], num_spots=250, bump=2.0, seed=seed)

    monkeypatch.setattr(demo_module, "demo_rounds", small)


def check(result: DemoResult) -> None:
    """Check that a demo came as close as it should."""
    assert result.error.count > 500
    assert result.error.median_voxels <= 0.15
    assert result.error.p95_voxels <= 0.5
    assert result.initial_error.median_voxels > 10


def test_the_demo_comes_close(tmp_path: Path) -> None:
    told = Recorder()
    result = demo(tmp_path / "demo", progress=told)
    check(result)
    assert set(os.listdir(tmp_path / "demo")) == {"round1.ome.zarr", "round2.ome.zarr", "run"}
    for name, volume in (("round1", result.rounds.fixed), ("round2", result.rounds.moving)):
        assert open_image(tmp_path / "demo" / f"{name}.ome.zarr").grid == volume.grid
    rows = dict(result.rows())
    assert rows["output"] == str(tmp_path / "demo" / "run")
    assert f"median {result.error.median_voxels:.3g} voxel" in rows["field error after"]
    assert next(iter(told.totals)) == "make round1.ome.zarr"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_other_demos_come_close(tmp_path: Path, seed: int) -> None:
    check(demo(tmp_path / "demo", seed=seed))


@pytest.mark.usefixtures("quick")
def test_a_demo_replaces_only_a_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    first = demo(folder)
    with pytest.raises(OutputError, match=r"exists already\. Choose another folder"):
        demo(folder, seed=1)
    other = demo(folder, seed=1, overwrite=True)
    assert other.error != first.error
    assert demo(folder, overwrite=True).error == first.error


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["thesis", "run", "round1.ome.zarr"])
def test_a_demo_removes_nothing_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "chapter1.tex").write_text("dear")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            demo(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_a_demo_needs_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("dear")
    with pytest.raises(OutputError, match="file"):
        demo(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="file"):
        demo(tmp_path / "file" / "demo")
    with pytest.raises(InputError, match="local path"):
        demo("s3://bucket/demo")
    assert (tmp_path / "file").read_text() == "dear"
