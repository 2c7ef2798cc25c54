from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from scenes import Recorder, contents, read_image, rounds, voxels, write_image, write_rounds

from tilereg import steps
from tilereg.config import Settings
from tilereg.errors import (
    ImageError,
    InputError,
    OutputError,
    RegistrationError,
    ResourceError,
)
from tilereg.grid import Grid
from tilereg.io.ome_zarr import open_image
from tilereg.io.tables import read_matches, read_points, read_spots, write_points
from tilereg.io.transforms import read_provenance, read_transform, write_affine, write_transform
from tilereg.lazy import volume
from tilereg.metrics import field_error
from tilereg.pipeline import Run
from tilereg.transform import Affine, DisplacementField, Transform
from tilereg.warping import warp_array


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(assignments)


@pytest.fixture(scope="module")
def tables(flat_pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the tables of the spots of the two planes."""
    folder = tmp_path_factory.mktemp("tables")
    places = [folder / "fixed.parquet", folder / "moving.parquet"]
    for image, place in zip(flat_pair, places, strict=True):
        steps.detect(image, place)
    return places


@pytest.fixture(scope="module")
def matched(tables: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a match of the tables."""
    folder = tmp_path_factory.mktemp("matched") / "match"
    steps.match(*tables, folder)
    return folder


def write_csv(path: Path, points: np.ndarray, names: str) -> Path:
    """Write points with a column of numbers in front and one of text behind."""
    rows = [f"{i},{','.join(map(repr, p))},gene {i % 3}" for i, p in enumerate(points.tolist())]
    path.write_text("\n".join([f"id,{names},gene", *rows]) + "\n")
    return path


def test_detect_writes_a_table(flat_pair: tuple[str, str], tmp_path: Path, client: Client) -> None:
    told = Recorder()
    found = steps.detect(flat_pair[0], tmp_path / "new" / "spots.parquet", progress=told)
    assert len(found) > 60
    read = read_spots(tmp_path / "new" / "spots.parquet")
    assert np.array_equal(read.positions, found.positions)
    assert np.array_equal(read.intensity, found.intensity)
    assert list(told.totals) == ["detect, size and threshold", "detect"]
    steps.detect(flat_pair[0], tmp_path / "there.parquet", client=client)
    assert contents(tmp_path)["there.parquet"] == contents(tmp_path)["new/spots.parquet"]


def test_detect_obeys_the_settings(tmp_path: Path) -> None:
    both = rounds(2)
    image = write_image(
        tmp_path / "image",
        np.stack([np.zeros_like(voxels(both.fixed)), voxels(both.fixed)]),
        both.fixed_grid,
        axes="cyx",
        levels=2,
    )
    dark = steps.detect(image, tmp_path / "a.parquet")
    assert len(dark) == 0
    assert len(read_spots(tmp_path / "a.parquet")) == 0
    every = steps.detect(image, tmp_path / "b.parquet", settings=settings("input.channel=1"))
    few = settings("input.channel=1", f"detect.threshold={np.median(every.response)}")
    assert 0 < len(steps.detect(image, tmp_path / "c.parquet", settings=few)) < len(every)
    coarse = settings("input.channel=1", "input.level=1", "detect.sigma=0.7")
    assert len(steps.detect(image, tmp_path / "d.parquet", settings=coarse)) > 30


def test_detect_refuses(flat_pair: tuple[str, str], tmp_path: Path) -> None:
    table = tmp_path / "spots.parquet"
    table.write_text("dear")
    with pytest.raises(OutputError, match=r"spots.parquet' exists already\. Remove it"):
        steps.detect(flat_pair[0], table)
    assert table.read_text() == "dear"
    steps.detect(flat_pair[0], table, overwrite=True)
    assert len(read_spots(table)) > 60
    with pytest.raises(ImageError, match="Nothing is at"):
        steps.detect(tmp_path / "nothing", tmp_path / "other.parquet")
    with pytest.raises(InputError, match="suffix"):
        steps.detect(flat_pair[0], tmp_path / "spots.xlsx")
    with pytest.raises(OutputError, match="Cannot write"):
        steps.detect(flat_pair[0], table / "spots.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"spots.parquet"}


def test_match_writes_what_a_run_does(matched: Path, tables: list[Path]) -> None:
    assert {p.name for p in matched.iterdir()} == {
        "matches.parquet", "qc.json", "transform.ome.zarr",
    }  # fmt: skip
    transform = read_transform(matched / "transform.ome.zarr")
    pairs = read_matches(matched / "matches.parquet")
    assert len(pairs) > 50
    gap = np.linalg.norm(transform(pairs.fixed) - pairs.moving, axis=1)
    # Those held out have judged a map that does not know them.
    np.testing.assert_allclose(pairs.residual[~pairs.held_out], gap[~pairs.held_out])
    assert not np.allclose(pairs.residual[pairs.held_out], gap[pairs.held_out])
    error = field_error(transform, rounds(2).true_map, pairs.fixed, rounds(2).fixed_grid.spacing)
    assert error.median_voxels < 0.3
    qc = json.loads((matched / "qc.json").read_text(), parse_constant=pytest.fail)
    assert qc["status"] == "ok"
    assert qc["matches"]["num_fixed"] == len(read_spots(tables[0]))
    assert qc["residual"]["held_out"]["median_um"] < 0.3
    assert set(qc["residual"]["held_out"]) == {"count", "median_um", "p95_um"}


@pytest.mark.parametrize("name", ["points.csv", "points.parquet"])
def test_match_takes_points_of_others(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, [50, 70], (150, 2))
    moving = fixed[rng.permutation(150)[:120]] + [-2.0, 9.0]
    places = []
    for role, points in (("fixed", fixed), ("moving", moving)):
        csv = write_csv(tmp_path / f"{role}.csv", points, "y,x")
        places.append(tmp_path / f"{role}_{name}")
        write_points(places[-1], read_points(csv), points)
    found = steps.match(*places, tmp_path / "match")
    assert found.is_ok
    points = rng.uniform(0, [50, 70], (10, 2))
    written = read_transform(tmp_path / "match" / "transform.ome.zarr")
    assert np.array_equal(written(points), found.transform(points))
    assert np.abs(written(points) - points - [-2, 9]).max() < 1e-6


def test_match_obeys_the_settings(tables: list[Path], tmp_path: Path) -> None:
    truth = rounds(2).true_map
    given = steps.match(*tables, tmp_path / "a", initial=Affine(truth.matrix, truth.offset))
    assert given.details["pose"]["source"] == "given"
    write_affine(tmp_path / "start.json", Affine(truth.matrix, truth.offset))
    from_file = settings("initial.method=file", f"initial.file='{tmp_path / 'start.json'}'")
    again = steps.match(*tables, tmp_path / "b", settings=from_file)
    points = read_spots(tables[0]).positions
    assert np.array_equal(again.transform(points), given.transform(points))
    smooth = settings("field.model=thin-plate", "field.smoothing=1.0", "match.seed=2")
    steps.match(*tables, tmp_path / "c", settings=smooth)
    qc = json.loads((tmp_path / "c" / "qc.json").read_text())
    assert qc["matches"]["fit"]["field"] == "thin-plate"


def test_match_fits_the_model_that_is_named(tables: list[Path], tmp_path: Path) -> None:
    wanted = settings("field.model=radial", "field.kernel=cubic", "field.control_points=40")
    found = steps.match(*tables, tmp_path / "match", settings=wanted)
    written = read_transform(tmp_path / "match" / "transform.ome.zarr")
    points = read_spots(tables[0]).positions
    assert np.array_equal(written(points), found.transform(points))
    told = json.loads((tmp_path / "match" / "qc.json").read_text())["matches"]["fit"]
    assert told["field"] == "radial"
    assert told["parameters"]["kernel"] == "cubic"
    assert told["parameters"]["control_points"] == 40
    assert 0 < told["lattice_error_um"] < 0.1
    assert min(told["cross_validation_um"].values()) < 1
    assert read_provenance(tmp_path / "match" / "transform.ome.zarr")["field"] == "radial"
    error = field_error(written, rounds(2).true_map, points, rounds(2).fixed_grid.spacing)
    assert error.median_voxels < 0.3


def test_match_refuses(tables: list[Path], matched: Path, tmp_path: Path) -> None:
    before = contents(matched)
    with pytest.raises(OutputError, match="exists already"):
        steps.match(*tables, matched)
    assert contents(matched) == before
    with pytest.raises(InputError, match=r"nothing\.csv"):
        steps.match(tables[0], tmp_path / "nothing.csv", tmp_path / "match")
    rng = np.random.default_rng(1)
    other = write_csv(tmp_path / "other.csv", rng.uniform(0, 40, (80, 2)), "y,x")
    with pytest.raises(RegistrationError, match="No registration was found"):
        steps.match(tables[0], other, tmp_path / "match")
    solid = write_csv(tmp_path / "solid.csv", rng.uniform(0, 40, (80, 3)), "z,y,x")
    with pytest.raises(InputError, match="2 axes, moving points have 3"):
        steps.match(tables[0], solid, tmp_path / "match")
    few = write_csv(tmp_path / "few.csv", rng.uniform(0, 40, (2, 2)), "y,x")
    with pytest.raises(RegistrationError, match="too few"):
        steps.match(tables[0], few, tmp_path / "match")
    with pytest.raises(InputError, match="3 axes, the data have 2"):
        steps.match(*tables, tmp_path / "match", initial=Affine.identity(3))
    assert not (tmp_path / "match").exists()
    (tmp_path / "file").write_text("dear")
    with pytest.raises(OutputError):
        steps.match(*tables, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "dear"


def test_match_overwrites(tables: list[Path], matched: Path, tmp_path: Path) -> None:
    output = tmp_path / "match"
    shutil.copytree(matched, output)
    steps.match(*tables, output, settings=settings("match.seed=9"), overwrite=True)
    assert contents(output) != contents(matched)
    steps.match(*tables, output, overwrite=True)
    assert contents(output) == contents(matched)


def test_the_steps_give_what_the_run_gives(
    finished: Run, pair: tuple[str, str], tmp_path: Path, client: Client
) -> None:
    for role, image in zip(("fixed", "moving"), pair, strict=True):
        steps.detect(image, tmp_path / f"{role}.parquet")
        ours = (tmp_path / f"{role}.parquet").read_bytes()
        assert ours == Path(finished.output, f"spots_{role}.parquet").read_bytes()
    for transform in (finished.output, f"{finished.output}/transform.ome.zarr"):
        output = tmp_path / Path(transform).name
        image = steps.warp(pair[1], transform, output, like=pair[0], client=client)
        assert np.array_equal(read_image(image), read_image(finished.registered))


def test_warp_options(flat_pair: tuple[str, str], matched: Path, tmp_path: Path) -> None:
    told = Recorder()
    chosen = settings(
        "warp.order=3", "warp.fill_value=9", "output.version='0.4'", "output.chunks=[64,64]",
        "output.levels=2", "output.compression=gzip",
    )  # fmt: skip
    image = steps.warp(
        flat_pair[1], matched, tmp_path / "image", like=flat_pair[0], settings=chosen, progress=told
    )
    assert image.version == "0.4"
    assert image.levels[0].chunks == (64, 64)
    assert told.totals == {"warp": 9, "pyramid, level 1": 4}
    both = rounds(2)
    want = warp_array(
        voxels(both.moving), read_transform(matched / "transform.ome.zarr"),
        like=both.fixed_grid, grid=both.moving_grid, order=3, fill_value=9,
    )  # fmt: skip
    assert np.array_equal(read_image(image), want)


def test_warp_refuses(
    flat_pair: tuple[str, str], pair: tuple[str, str], matched: Path, tmp_path: Path
) -> None:
    output = tmp_path / "image"
    how: dict[str, Any] = {"like": flat_pair[0]}
    with pytest.raises(ImageError, match="No transform at"):
        steps.warp(flat_pair[1], tmp_path / "nothing", output, **how)
    with pytest.raises(InputError, match=r"3 spatial axes, the transform has 2"):
        steps.warp(pair[1], matched, output, **how)
    with pytest.raises(InputError, match=r"be like .* 3 spatial axes"):
        steps.warp(flat_pair[1], matched, output, like=pair[0])
    with pytest.raises(InputError, match="fill_value"):
        steps.warp(flat_pair[1], matched, output, settings=settings("warp.fill_value=-1"), **how)
    with pytest.raises(ResourceError, match="smaller chunks"):
        steps.warp(flat_pair[1], matched, output, settings=settings("compute.memory=1MB"), **how)
    assert not output.exists()


def test_warp_replaces_only_images(
    flat_pair: tuple[str, str], matched: Path, tmp_path: Path
) -> None:
    output, how = tmp_path / "image", {"like": flat_pair[0]}
    steps.warp(flat_pair[1], matched, output, **how)
    before = contents(output)
    with pytest.raises(OutputError, match="exists already"):
        steps.warp(flat_pair[1], matched, output, **how)
    # A wrong setting is told before the earlier image is removed.
    for wrong in ("warp.channels=[5]", "output.chunks=[4,4,4]", "compute.memory=1MB"):
        with pytest.raises((InputError, ResourceError)):
            steps.warp(
                flat_pair[1], matched, output, settings=settings(wrong), overwrite=True, **how
            )
    assert contents(output) == before
    coarse = settings("output.chunks=[20,20]")
    steps.warp(flat_pair[1], matched, output, settings=coarse, overwrite=True, **how)
    assert open_image(output).levels[0].chunks == (20, 20)
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("dear")
    with pytest.raises(OutputError, match="not a Zarr store"):
        steps.warp(flat_pair[1], matched, folder, overwrite=True, **how)
    assert (folder / "chapter1.tex").read_text() == "dear"


def test_warp_never_removes_its_inputs(
    flat_pair: tuple[str, str], matched: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(flat_pair[1], folder / "moving")
    shutil.copytree(flat_pair[0], folder / "fixed")
    shutil.copytree(matched / "transform.ome.zarr", folder / "transform")
    before = contents(folder)
    for name in ("moving", "fixed", "transform"):
        with pytest.raises(OutputError, match="lies in the output"):
            steps.warp(
                folder / "moving", folder / "transform", folder / name, like=folder / "fixed",
                overwrite=True,
            )  # fmt: skip
    assert contents(folder) == before


@pytest.mark.parametrize("error", [OutputError("No room."), KeyboardInterrupt()])
def test_warp_leaves_no_half_image(
    flat_pair: tuple[str, str],
    matched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(volume, "_warp_unit", fail)
    with pytest.raises(type(error)):
        steps.warp(flat_pair[1], matched, tmp_path / "image", like=flat_pair[0])
    assert not (tmp_path / "image").exists()


def test_warp_of_a_damaged_image(matched: Path, tmp_path: Path) -> None:
    fixed, moving = write_rounds(tmp_path, 2, chunks=(40, 40))
    chunk = Path(moving) / "0" / "c" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(ImageError, match="c/1/1"):
        steps.warp(moving, matched, tmp_path / "image", like=fixed)
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_points_go_there_and_back(finished: Run, tmp_path: Path, suffix: str) -> None:
    points = rounds(3).fixed_points[:50]
    first = write_csv(tmp_path / "first.csv", points, "z,y,x")
    there, back = tmp_path / f"there.{suffix}", tmp_path / f"back.{suffix}"
    result = steps.points(first, finished.output, there)
    assert (result.count, result.num_failed) == (50, 0)
    moved = read_points(there)
    assert np.array_equal(moved.positions, finished.transform(points))
    assert moved.table.column_names == ["id", "z", "y", "x", "gene"]
    assert moved.table["gene"].to_pylist()[:4] == ["gene 0", "gene 1", "gene 2", "gene 0"]
    result = steps.points(there, f"{finished.output}/transform.ome.zarr", back, inverse=True)
    assert result.num_failed == 0
    assert np.abs(read_points(back).positions - points).max() < 1e-6


def test_points_without_an_inverse_are_counted(tmp_path: Path) -> None:
    # The field folds: what lies beyond the fold has no inverse that is found.
    coefficients = np.zeros((8, 8, 2))
    coefficients[3:5, 3:5, 1] = 40.0
    transform = Transform(
        Affine.identity(2), DisplacementField(coefficients, np.zeros(2), np.full(2, 5.0))
    )
    grid = Grid(shape=(40, 40))
    write_transform(tmp_path / "t.ome.zarr", transform, fixed_grid=grid)
    points = np.random.default_rng(0).uniform(0, 40, (200, 2))
    table = write_csv(tmp_path / "points.csv", points, "y,x")
    result = steps.points(table, tmp_path / "t.ome.zarr", tmp_path / "back.csv", inverse=True)
    bad = np.isnan(transform.inverse(points)).any(axis=1)
    assert result.count == 200
    assert result.num_failed == bad.sum() > 0
    rows = (tmp_path / "back.csv").read_text().splitlines()
    assert len(rows) == 201
    with pytest.raises(InputError, match="finite"):
        read_points(tmp_path / "back.csv")


def test_points_refuse(finished: Run, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "points.csv", np.ones((3, 3)), "z,y,x")
    flat = write_csv(tmp_path / "flat.csv", np.ones((3, 2)), "y,x")
    out = tmp_path / "out.csv"
    with pytest.raises(InputError, match="axes"):
        steps.points(flat, finished.output, out)
    with pytest.raises(InputError, match="no such file"):
        steps.points(tmp_path / "nothing.csv", finished.output, out)
    with pytest.raises(ImageError, match="No transform at"):
        steps.points(table, tmp_path / "nothing", out)
    with pytest.raises(InputError, match="suffix"):
        steps.points(table, finished.output, tmp_path / "out.xlsx")
    with pytest.raises(OutputError, match="exists already"):
        steps.points(table, finished.output, table)
    assert not out.exists()
    steps.points(table, finished.output, table, overwrite=True)
    assert np.array_equal(read_points(table).positions, finished.transform(np.ones((3, 3))))
