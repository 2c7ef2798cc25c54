"""A run with a user's own spots in place of detection, and with landmarks, from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from scenes import RUN_FILES, Recorder, rounds
from typer.testing import CliRunner, Result

from tilereg.cli import app
from tilereg.config import Settings
from tilereg.errors import InputError, OutputError, RegistrationError
from tilereg.io.columnar import read_table
from tilereg.io.tables import read_matches
from tilereg.metrics import field_error
from tilereg.pipeline import Run, plan, register

Floats = NDArray[np.float64]


def settings(**values: Any) -> Settings:
    names = (f"{name.replace('__', '.')}={value}" for name, value in values.items())
    return Settings().with_overrides(names)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"])


def write(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the true spots of the two planes, in voxels, each of one of three kinds."""
    folder = tmp_path_factory.mktemp("own")
    truth = rounds(2)
    found = []
    for name, volume in (("fixed", truth.fixed), ("moving", truth.moving)):
        index = volume.positions_index
        kinds = [f"kind {k}" for k in (np.round(volume.amplitudes) % 3).astype(int)]
        columns = {"centroid-0": index[:, 0], "centroid-1": index[:, 1], "kind": kinds}
        found.append(write(folder / f"{name}.parquet", **columns))
    return found[0], found[1]


CHOSEN = {"spots__columns": "y=centroid-0,x=centroid-1", "spots__unit": "voxel"}


def error(found: Run) -> float:
    truth = rounds(2)
    measured = field_error(
        found.transform, truth.true_map, truth.fixed_points, truth.fixed_grid.spacing
    )
    return measured.median_voxels


@pytest.fixture(scope="module")
def finished_own(
    flat_pair: tuple[str, str],
    tables: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """Return a run whose spots were all given."""
    chosen = settings(spots__fixed=tables[0], spots__moving=tables[1], **CHOSEN)
    return register(*flat_pair, tmp_path_factory.mktemp("run") / "run", settings=chosen)


def test_spots_that_are_given_take_the_place_of_detection(
    finished_own: Run, tables: tuple[Path, Path]
) -> None:
    folder = Path(finished_own.output)
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    truth = rounds(2)
    for role, table in zip(("fixed", "moving"), tables, strict=True):
        volume = getattr(truth, role)
        written = read_table(folder / f"spots_{role}.parquet")
        places = np.column_stack([written["y"].to_numpy(), written["x"].to_numpy()])
        np.testing.assert_allclose(places, volume.grid.to_world(volume.positions_index))
        assert finished_own.qc["given"][f"{role}_spots"] == str(table)
        assert finished_own.qc["spots"][role] == len(places)
        assert finished_own.qc["spots"][f"{role}_sigma_um"] is None
    names = [stage["name"] for stage in finished_own.qc["stages"]]
    assert names[:2] == ["read fixed", "read moving"]
    assert error(finished_own) < 0.3
    assert finished_own.qc["ncc"]["after"] > finished_own.qc["ncc"]["before"]


def test_a_run_with_own_spots_goes_on(
    finished_own: Run, flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    """With the same tables, wherever they are now; not with others."""
    moved = [tmp_path / table.name for table in tables]
    for old, new in zip(tables, moved, strict=True):
        new.write_bytes(old.read_bytes())
    out = tmp_path / "run"
    chosen = settings(spots__fixed=moved[0], spots__moving=moved[1], **CHOSEN)
    first = register(*flat_pair, out, settings=chosen)
    np.testing.assert_array_equal(first.matches.fixed, finished_own.matches.fixed)
    # Everything after the match is done anew from what is on disk.
    for name in ("match", "warp", "judge"):
        (out / "progress" / f"{name}.json").unlink()
    told = Recorder()
    again = register(*flat_pair, out, settings=chosen, resume=True, progress=told)
    np.testing.assert_array_equal(again.matches.moving, first.matches.moving)
    assert any("read fixed" in note and "earlier start" in note for note in told.notes)
    table = pyarrow.parquet.read_table(moved[1])
    pyarrow.parquet.write_table(table.slice(1), moved[1])
    with pytest.raises(OutputError, match="moving_spots_fingerprint was"):
        register(*flat_pair, out, settings=chosen, resume=True)


def test_classes_are_kept_in_the_folder(
    flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    """And read again when the run goes on."""
    chosen = settings(
        spots__fixed=tables[0],
        spots__moving=tables[1],
        spots__columns="y=centroid-0,x=centroid-1,class=kind",
        spots__unit="voxel",
    )
    found = register(*flat_pair, tmp_path / "run", settings=chosen)
    kinds = [
        np.array(read_table(tmp_path / "run" / f"spots_{role}.parquet")["class"].to_pylist())
        for role in ("fixed", "moving")
    ]
    pairs = found.matches
    assert (kinds[0][pairs.fixed_index] == kinds[1][pairs.moving_index]).all()
    (tmp_path / "run" / "progress" / "match.json").unlink()
    again = register(*flat_pair, tmp_path / "run", settings=chosen, resume=True)
    np.testing.assert_array_equal(again.matches.fixed_index, pairs.fixed_index)


def test_one_table_and_one_detection_from_the_command_line(
    flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    """With landmarks beside them: three that are true, and one that is not."""
    truth = rounds(2)
    points = truth.fixed_points[[3, 60, 120, 170]] + 1.0
    partners = truth.true_map(points)
    partners[1] += [0.0, 15.0]
    marks = write(
        tmp_path / "marks.parquet",
        fixed_y=points[:, 0],
        fixed_x=points[:, 1],
        moving_y=partners[:, 0],
        moving_x=partners[:, 1],
    )
    result = run(
        "register", *flat_pair, tmp_path / "run", "--fixed-spots", tables[0], "--voxels",
        "--columns", "y=centroid-0,x=centroid-1", "--landmarks", marks,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert f"{len(truth.fixed.positions_index)} fixed (given)" in result.stdout
    assert "1 of 4 landmarks" in result.stdout
    qc = json.loads((tmp_path / "run" / "qc.json").read_text())
    assert set(qc["given"]) == {"fixed_spots", "landmarks"}
    assert qc["landmarks"]["contradicted"] == [1]
    assert qc["warnings"][0].startswith("1 of 4 landmarks")
    assert qc["spots"]["fixed_sigma_um"] is None
    assert qc["spots"]["moving_sigma_um"] > 0
    told = pyarrow.parquet.read_table(tmp_path / "run" / "landmarks.parquet")
    assert told["is_contradicted"].to_pylist() == [False, True, False, False]
    assert (read_matches(tmp_path / "run" / "matches.parquet").fixed_index >= 0).all()
    # Landmarks that have changed make another run.
    write(marks, fixed_y=[1.0], fixed_x=[1.0], moving_y=[1.0], moving_x=[1.0])
    result = run(
        "register", *flat_pair, tmp_path / "run", "--fixed-spots", tables[0], "--voxels",
        "--columns", "y=centroid-0,x=centroid-1", "--landmarks", marks, "--resume",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "landmarks_fingerprint" in result.stderr


def test_a_plan_counts_no_detection_where_spots_are_given(
    flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = plan(*flat_pair, tmp_path / "run")
    one = plan(*flat_pair, tmp_path / "run", settings=settings(spots__fixed=tables[0], **CHOSEN))
    both = plan(
        *flat_pair,
        tmp_path / "run",
        settings=settings(spots__fixed=tables[0], spots__moving=tables[1], **CHOSEN),
    )
    assert plain.num_detect_tasks == 2 * one.num_detect_tasks > 0
    assert plain.voxels_read > one.voxels_read > both.voxels_read
    assert (both.num_detect_tasks, both.detect_task_bytes, both.sample_bytes) == (0, 0, 0)
    assert ("first look", "none") in both.rows()
    assert ("detection", "none") in both.rows()
    assert len(both.assumed) < len(plain.assumed)


def test_tables_that_do_not_fit_the_image_are_refused(
    flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    def refused(kind: type[Exception], words: str, **values: Any) -> None:
        with pytest.raises(kind, match=words):
            register(*flat_pair, tmp_path / "run", settings=settings(**values))
        assert not (tmp_path / "run").exists()

    columns = {"spots__columns": "y=centroid-0,x=centroid-1"}
    far = write(tmp_path / "far.parquet", y=np.arange(50) + 500.0, x=np.arange(50.0))
    refused(InputError, r"50 of 50 spots in '.*far.*' lie outside.*--voxels", spots__fixed=far)
    few = write(tmp_path / "few.parquet", y=[1.0, 2.0], x=[1.0, 2.0])
    refused(RegistrationError, r"Too few spots: 2 in '.*few", spots__moving=few)
    solid = write(tmp_path / "solid.parquet", z=[1.0] * 5, y=[1.0] * 5, x=[1.0] * 5)
    refused(InputError, "have 3 axes, .* has 2", spots__fixed=solid)
    refused(InputError, "Missing columns y, x", spots__fixed=tables[0])
    refused(InputError, r"No table at '.*gone\.csv'", spots__fixed=tmp_path / "gone.csv")
    refused(InputError, r"spots\.columns say how tables.*--fixed-spots", **columns)
    refused(InputError, r"spots\.unit say", spots__unit="voxel")
    # One side has classes, the other is detected and has none.
    named = "y=centroid-0,x=centroid-1,class=kind"
    refused(
        InputError, "The fixed spots have classes", spots__fixed=tables[0], spots__columns=named,
        spots__unit="voxel",
    )  # fmt: skip


def test_an_own_table_is_never_overwritten(
    flat_pair: tuple[str, str], tables: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    inside = folder / "spots.parquet"
    inside.write_bytes(tables[0].read_bytes())
    with pytest.raises(OutputError, match="lies in the output"):
        register(*flat_pair, folder, settings=settings(spots__fixed=inside, **CHOSEN))
    assert inside.exists()
