"""Tables of points: what is read is what was written, and foreign columns survive."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from tilereg.errors import InputError, OutputError
from tilereg.io.tables import (
    read_matches,
    read_points,
    read_spots,
    write_matches,
    write_points,
    write_spots,
)
from tilereg.points import Correspondences, Spots

SUFFIXES = [".parquet", ".csv"]


def random_spots(ndim: int, count: int = 50) -> Spots:
    rng = np.random.default_rng(ndim)
    return Spots(
        positions=rng.normal(0, 1000, (count, ndim)),
        sigma=rng.uniform(0.1, 0.3, count),
        intensity=rng.uniform(10, 1e6, count),
        response=rng.uniform(1e-9, 1, count),
        localisation=rng.uniform(0.01, 0.1, count),
        chunk=rng.integers(0, 2**62, count),
    )


def random_matches(ndim: int, count: int = 50) -> Correspondences:
    rng = np.random.default_rng(ndim)
    return Correspondences(
        fixed=rng.normal(0, 1000, (count, ndim)),
        moving=rng.normal(0, 1000, (count, ndim)),
        fixed_index=rng.permutation(count),
        moving_index=rng.permutation(count),
        weight=rng.uniform(0, 1, count),
        residual=rng.uniform(0, 1, count),
        held_out=rng.uniform(size=count) < 0.3,
        tile=rng.integers(0, 5, count),
    )


def assert_same(a: Any, b: Any) -> None:
    """Check that two records hold the same bits of the same types."""
    assert type(a) is type(b)
    for name in a.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if right is None:
            assert left is None, name
            continue
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        assert left.tobytes() == right.tobytes(), name


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_spots_round_trip(tmp_path: Path, ndim: int, count: int, suffix: str) -> None:
    spots = random_spots(ndim, count)
    write_spots(tmp_path / f"spots{suffix}", spots)
    assert_same(read_spots(tmp_path / f"spots{suffix}"), spots)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_matches_round_trip(tmp_path: Path, ndim: int, count: int, suffix: str) -> None:
    matches = random_matches(ndim, count)
    write_matches(tmp_path / f"matches{suffix}", matches)
    assert_same(read_matches(tmp_path / f"matches{suffix}"), matches)


def test_columns_and_units() -> None:
    folder = "memory://test-tables-columns"
    write_spots(f"{folder}/spots.parquet", random_spots(2))
    write_matches(f"{folder}/matches.parquet", random_matches(3))
    system = fsspec.filesystem("memory")
    spots, matches = (
        pa.parquet.read_schema(system.open(f"/test-tables-columns/{name}.parquet"))
        for name in ("spots", "matches")
    )
    system.rm("/test-tables-columns", recursive=True)
    assert spots.names == [*"yx", "sigma", "intensity", "response", "localisation", "chunk"]
    assert matches.names == [
        *("z_fixed", "y_fixed", "x_fixed", "z_moving", "y_moving", "x_moving"),
        *("fixed_index", "moving_index", "weight", "residual", "held_out", "tile"),
    ]
    assert json.loads(spots.metadata[b"tilereg"]) == {
        "kind": "spots",
        "units": dict.fromkeys([*"yx", "sigma", "localisation"], "micrometer"),
    }
    assert json.loads(matches.metadata[b"tilereg"]) == {
        "kind": "matches",
        "units": dict.fromkeys([*matches.names[:6], "residual"], "micrometer"),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_spots_of_other_detectors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"spots{suffix}"
    table = pa.table({"gene": ["a", "b"], "x": [3, 4], "y": [2.5, 3.5], "z": [1, 2]})
    if suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)
    spots = read_spots(path)
    assert spots.positions.tolist() == [[1, 2.5, 3], [2, 3.5, 4]]
    for name in ("sigma", "intensity", "response", "localisation"):
        assert np.isnan(getattr(spots, name)).all()
    assert spots.chunk.tolist() == [0, 0]


def test_missing_values_of_spots(tmp_path: Path) -> None:
    path = write_text(tmp_path / "s.csv", "y,x,sigma\n1,2,\n3,4,0.5\n")
    assert np.array_equal(read_spots(path).sigma, [np.nan, 0.5], equal_nan=True)
    write_text(path, "y,x,chunk\n1,2,\n3,4,1\n")
    with pytest.raises(InputError, match=r"Column chunk of '.*s.csv' has 1 empty rows"):
        read_spots(path)


CSV = (
    "id, z,x,y,note,when\n"
    "007, 1.50,3,2,plain,2026-01-02\n"
    "3,1e2,-0.0,.5,,\n"
    '11,4,5,6,"two, words",2026-01-03\n'
)


def test_csv_to_csv_keeps_other_columns_letter_by_letter(tmp_path: Path) -> None:
    points = read_points(write_text(tmp_path / "a.csv", CSV))
    assert points.positions.tolist() == [[1.5, 2, 3], [100, 0.5, 0], [4, 6, 5]]
    write_points(tmp_path / "b.csv", points, points.positions + [0.25, 0, 0])
    assert (tmp_path / "b.csv").read_text() == (
        '"id"," z","x","y","note","when"\n'
        '"007",1.75,3,2,"plain","2026-01-02"\n'
        '"3",100.25,0,0.5,"",""\n'
        '"11",4.25,5,6,"two, words","2026-01-03"\n'
    )
    assert read_points(tmp_path / "b.csv").positions[:, 0].tolist() == [1.75, 100.25, 4.25]


def test_csv_has_quotation_marks_only_where_needed(tmp_path: Path) -> None:
    text = "id,z,y,x,note\n007,1.5,2,3,plain\n3,0.25,5,-6,\n"
    points = read_points(write_text(tmp_path / "a.csv", text))
    write_points(tmp_path / "b.csv", points, points.positions)
    assert (tmp_path / "b.csv").read_text() == text


def test_csv_to_parquet_finds_numbers(tmp_path: Path) -> None:
    text = "id,y,x,cell,score,note,nothing\n007,1,2,12,0.5,a,\n11,3,4,-3,1e3,,\n2,5,6,,7,b,\n"
    points = read_points(write_text(tmp_path / "a.csv", text))
    write_points(tmp_path / "b.parquet", points, 2 * points.positions)
    table = pa.parquet.read_table(tmp_path / "b.parquet")
    assert table.to_pydict() == {
        "id": ["007", "11", "2"],
        "y": [2.0, 6.0, 10.0],
        "x": [4.0, 8.0, 12.0],
        "cell": [12, -3, None],
        "score": [0.5, 1000.0, 7.0],
        "note": ["a", "", "b"],
        "nothing": ["", "", ""],
    }
    assert [str(t) for t in table.schema.types[3:5]] == ["int64", "double"]


def test_parquet_to_parquet_keeps_types_and_metadata(tmp_path: Path) -> None:
    table = pa.table(
        {
            "when": [datetime.datetime(2026, 1, 2), None],
            "x": pa.array([1, 2], pa.int16()),
            "tags": [["a"], []],
            "y": pa.array([0.1, 0.2], pa.float32()),
            "gene": pa.array(["u", "v"]).dictionary_encode(),
        }
    ).replace_schema_metadata({"made_by": "someone"})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    points = read_points(tmp_path / "a.parquet")
    assert points.ndim == 2
    assert points.positions.tolist() == [[float(np.float32(0.1)), 1], [float(np.float32(0.2)), 2]]
    write_points(tmp_path / "b.parquet", points, [[5.5, 6.5], [np.nan, 8.5]])
    moved = pa.parquet.read_table(tmp_path / "b.parquet")
    assert moved.column_names == table.column_names
    for name in ("when", "tags", "gene"):
        assert moved.column(name).equals(table.column(name))
    assert moved.schema.metadata[b"made_by"] == b"someone"
    assert np.array_equal(moved.column("y").to_numpy(), [5.5, np.nan], equal_nan=True)


def test_parquet_to_csv_to_parquet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "score": rng.normal(size=20),
            "z": rng.normal(size=20),
            "y": rng.normal(size=20),
            "x": rng.normal(size=20),
            "cell": rng.integers(-(2**62), 2**62, 20),
            "gene": [f"gene {i}" for i in range(20)],
        }
    )
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    for first, last in [("a.parquet", "b.csv"), ("b.csv", "c.parquet")]:
        points = read_points(tmp_path / first)
        write_points(tmp_path / last, points, points.positions)
    assert pa.parquet.read_table(tmp_path / "c.parquet").equals(table)


def test_columns_that_csv_cannot_hold(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"y": [1], "x": [2], "tags": [["a"]]}), tmp_path / "a.parquet")
    points = read_points(tmp_path / "a.parquet")
    with pytest.raises(
        OutputError, match=r"Cannot write '.*b.csv' as CSV: .* Write .parquet."
    ) as e:
        write_points(tmp_path / "b.csv", points, points.positions)
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_failed_points_are_written_as_nan(tmp_path: Path) -> None:
    points = read_points(write_text(tmp_path / "a.csv", "y,x\n1,2\n3,4\n"))
    write_points(tmp_path / "b.csv", points, [[1, 2], [np.nan, np.nan]])
    assert (tmp_path / "b.csv").read_text() == "y,x\n1,2\nnan,nan\n"


def test_urls() -> None:
    folder = "memory://test-tables-urls/new"
    spots = random_spots(3)
    write_spots(f"{folder}/spots.parquet", spots)
    with pytest.raises(OutputError, match="exists already"):
        write_spots(f"{folder}/spots.parquet", spots)
    points = read_points(f"{folder}/spots.parquet")
    write_points(f"{folder}/spots.CSV", points, points.positions)
    assert_same(read_spots(f"{folder}/spots.CSV"), spots)
    write_spots(f"{folder}/spots.parquet", spots.take(np.arange(3)), overwrite=True)
    assert len(read_spots(f"{folder}/spots.parquet")) == 3
    with pytest.raises(InputError, match=r"No table at 'memory://.*none.csv': no such file"):
        read_points(f"{folder}/none.csv")
    fsspec.filesystem("memory").rm("/test-tables-urls", recursive=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a CSV file, or is damaged: ArrowInvalid: Empty CSV file"),
        ("z,y,x\n", "has no rows. A table of points needs at least one"),
        ("a,z,y\n1,2,3\n", r"Missing column x in '.*'. Present are: a, z, y"),
        ("index,axis-0,axis-1\n1,2,3\n", "Missing columns y, x .* Present are: index, axis-0"),
        ("z;y;x\n1;2;3\n", r"Missing columns y, x in '.*'. Present are: z;y;x"),
        ("y,x,y\n1,2,3\n", r"Column y is in '.*' more than once"),
        ("y,x\n1,2\n3,left\n", r"Column x of '.*' holds 'left' in row 1, counted from 0"),
        ("y,x\n1,2\n3,\n", r"1 of 2 positions in '.*' .* first in row 1.*: \[3.0, nan\]"),
        (
            "y,x\n1,2\nnan,4\ninf,2\n",
            r"2 of 3 positions in '.*' are not finite, the first in row 1",
        ),
        ("y,x\n1,2\n3\n", "is not a CSV file, or is damaged: .*Expected 2 columns, got 1"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, message: str) -> None:
    path = write_text(tmp_path / "points.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"y,x,note\n1,2,caf\xe9\n")
    with pytest.raises(InputError, match=r"is not a CSV file, or is damaged: .*UTF8"):
        read_points(tmp_path / "a.csv")


def test_parquet_errors(tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="is not a Parquet file, or is damaged") as caught:
        read_points(path)
    assert "\n" not in str(caught.value)
    pa.parquet.write_table(pa.table({"y": [datetime.date(2026, 1, 2)], "x": [1]}), path)
    with pytest.raises(InputError, match=r"Column y of '.*' holds datetime.date.* in row 0"):
        read_points(path)
    pa.parquet.write_table(pa.table({"y": [1.0, None], "x": [1, 2]}), path)
    with pytest.raises(InputError, match=r"1 of 2 positions in .* are not finite"):
        read_points(path)


def test_cut_parquet(tmp_path: Path) -> None:
    path = tmp_path / "spots.parquet"
    write_spots(path, random_spots(3))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is not a Parquet file, or is damaged"):
        read_spots(path)


def test_matches_need_all_their_columns(tmp_path: Path) -> None:
    write_spots(tmp_path / "spots.parquet", random_spots(3))
    with pytest.raises(InputError, match=r"Missing columns y_fixed, x_fixed .* Present are: z, y"):
        read_matches(tmp_path / "spots.parquet")
    write_matches(tmp_path / "matches.parquet", random_matches(3))
    table = pa.parquet.read_table(tmp_path / "matches.parquet")
    for name in ("z_moving", "tile"):
        pa.parquet.write_table(table.drop_columns([name]), tmp_path / "cut.parquet")
        with pytest.raises(InputError, match=f"Missing column {name} in"):
            read_matches(tmp_path / "cut.parquet")


def test_locations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Invalid suffix '.xlsx' of 'a.xlsx'. A table ends in"):
        read_points("a.xlsx")
    with pytest.raises(InputError, match="Invalid suffix '' of 'a'"):
        write_spots("a", random_spots(2))
    with pytest.raises(InputError, match=r"No table at '.*none.csv': no such file"):
        read_points(tmp_path / "none.csv")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InputError, match=r"folder\.parquet' is a folder, not a file"):
        read_points(tmp_path / "folder.parquet")
    with pytest.raises(InputError, match=r"nonsense://a\.csv"):
        read_points("nonsense://a.csv")


def test_positions_must_fit(tmp_path: Path) -> None:
    points = read_points(write_text(tmp_path / "a.csv", "y,x\n1,2\n3,4\n"))
    for shape in [(1, 2), (2, 3), (2,)]:
        with pytest.raises(InputError, match=r"Invalid shape .* The table has 2 points of 2 axes"):
            write_points(tmp_path / "b.csv", points, np.zeros(shape))


def test_existing_output_is_kept(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "y,x\n1,2\n")
    points = read_points(path)
    with pytest.raises(
        OutputError, match=r"a.csv' exists already. Remove it, or use .*--overwrite"
    ):
        write_points(path, points, [[5, 6]])
    assert path.read_text() == "y,x\n1,2\n"
    write_points(path, points, [[5, 6]], overwrite=True)
    assert path.read_text() == "y,x\n5,6\n"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spots.parquet"
    spots = random_spots(2)
    write_spots(path, spots)

    def fail(table: object, stream: Any, **_: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.parquet, "write_table", fail)
    with pytest.raises(
        OutputError, match=r"Cannot write '.*spots.parquet' .*No space left .* Free"
    ):
        write_spots(path, spots.take(np.arange(3)), overwrite=True)
    assert_same(read_spots(path), spots)
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path: Path) -> None:
    write_spots(tmp_path / "run" / "new" / "spots.parquet", random_spots(2))
    assert (tmp_path / "run" / "new" / "spots.parquet").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_spots(tmp_path / "file" / "spots.parquet", random_spots(2))
