"""The main job on real images, where they are at hand: see `data_folder`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import embryos, seqfish
from benchmarks.results_files import Options
from tilereg import Settings, Transform, register
from tilereg.io.ome_zarr import open_image
from tilereg.metrics import ncc
from tilereg.warping import warp_array

pytestmark = pytest.mark.slow


@pytest.fixture
def data_folder() -> Path:
    """Return TILEREG_DATA, else the folder beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TILEREG_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"there is no real data in {folder}; set TILEREG_DATA")
    return folder


def test_cell_bodies_in_expanded_brain(data_folder: Path, tmp_path: Path) -> None:
    paths = [data_folder / "easifish" / f"round{n}.ome.zarr" for n in (1, 2)]
    run = register(*paths, tmp_path / "run")
    fixed, moving = (open_image(path).reader() for path in paths)
    ones = np.ones(moving.shape, np.uint8)
    inside = warp_array(ones, run.transform, like=fixed.grid, grid=moving.grid, order=0) > 0
    inside[:21] = False
    reference = fixed.read(fixed.grid.window)
    registered = run.registered.reader().read(fixed.grid.window)
    assert ncc(reference, registered, inside) > 0.87
    unmoved = warp_array(
        moving.read(moving.grid.window), Transform.identity(3), like=fixed.grid, grid=moving.grid
    )
    assert ncc(reference, unmoved, inside) < 0.1
    assert run.qc["field"]["fold_share"] == 0


@pytest.mark.parametrize("number", range(1, 8))
def test_drift_of_merfish_rounds(data_folder: Path, tmp_path: Path, number: int) -> None:
    paths = [data_folder / "merfish" / f"round{n}.ome.zarr" for n in (0, number)]
    centre = np.array([[6.9, 6.9]])
    drift = []
    for channel in ("beads_561", "cell_488"):
        settings = Settings().with_overrides([f"input.channel={channel}"])
        run = register(*paths, tmp_path / channel, settings=settings)
        drift.append((run.transform(centre) - centre)[0] / 0.108)
    assert np.linalg.norm(drift[0]) > 2
    assert np.linalg.norm(drift[0] - drift[1]) < 0.5


def test_dots_of_hybridisations_against_beads(data_folder: Path) -> None:
    figures = seqfish.run(Options(data=data_folder))
    assert figures["found"] == 41
    assert figures["close"] >= 39


def test_cells_of_embryos_find_their_namesakes(data_folder: Path) -> None:
    figures = embryos.run(Options(data=data_folder))
    assert {row["status"] for row in figures["pairs"]} == {"ok"}
    assert min(row["right"] for row in figures["pairs"]) > 0.88
