"""A user's own tables: columns by other names, positions in voxels, classes, landmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from clouds import Pair, make_pair
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from tilereg import steps
from tilereg.cli import app
from tilereg.columns import Columns
from tilereg.config import Settings
from tilereg.errors import InputError, SettingsError
from tilereg.given import columns_of, fingerprints, spots_of
from tilereg.grid import Grid
from tilereg.io.landmarks import read_landmarks, write_landmarks
from tilereg.io.tables import read_matches, read_spots, write_spots
from tilereg.io.transforms import read_transform
from tilereg.points import Landmarks, Spots

Floats = NDArray[np.float64]

CENTROIDS = "z=centroid-0,y=centroid-1,x=centroid-2"


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    """Write columns as CSV or Parquet."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(columns), path)
        return path
    rows = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def centroids(points: Floats, name: str = "centroid-{}") -> dict[str, Any]:
    """Return the columns of a table of region properties."""
    axes = {name.format(i): points[:, i] for i in range(points.shape[1])}
    return {"label": np.arange(len(points)), **axes, "area": np.full(len(points), 7)}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--quiet"])


def settings(*assignments: str) -> Settings:
    return Settings().with_overrides(assignments)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make_pair(400)


def error_of(folder: Path, pair: Pair) -> float:
    transform = read_transform(folder / "transform.ome.zarr")
    gap = transform(pair.fixed) - pair.true_map(pair.fixed)
    return float(np.median(np.linalg.norm(gap, axis=1)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_of_region_properties_in_voxels(pair: Pair, tmp_path: Path, suffix: str) -> None:
    """Centroids of a segmentation, with other voxels in either round."""
    sizes = np.array([2.0, 0.5, 0.5]), np.array([1.0, 0.25, 0.25])
    tables = [
        write_table(tmp_path / f"{name}{suffix}", centroids(cloud / size))
        for name, cloud, size in zip(
            ("fixed", "moving"), (pair.fixed, pair.moving), sizes, strict=True
        )
    ]
    out = tmp_path / "out"
    result = run(
        "match", *tables, out, "--columns", CENTROIDS, "--spacing", "2,0.5,0.5",
        "--moving-spacing", "1,0.25,0.25",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert error_of(out, pair) < 0.3
    found = read_matches(out / "matches.parquet")
    np.testing.assert_allclose(found.fixed, pair.fixed[found.fixed_index], atol=1e-9)
    assert (pair.partner[found.fixed_index] == found.moving_index).mean() > 0.98
    # The rows of the settings that are used are those of the options.
    same = settings(
        f"spots.columns={CENTROIDS}", "spots.spacing=[2, 0.5, 0.5]",
        "spots.moving_spacing=[1, 0.25, 0.25]",
    )  # fmt: skip
    again = steps.match(*tables, tmp_path / "again", settings=same)
    np.testing.assert_array_equal(again.correspondences.fixed_index, found.fixed_index)


def test_classes_are_matched_alike(tmp_path: Path) -> None:
    """Half a spacing of noise, ten genes: hopeless without their names."""
    pair = make_pair(1500, noise=4.0)
    rng = np.random.default_rng(0)
    genes = np.array([f"gene {k}" for k in range(10)])
    theirs = rng.integers(0, 10, 1500)
    ours = np.where(pair.partner >= 0, theirs[pair.partner], rng.integers(0, 10, 1500))
    # One table holds text, the other text by number: the same names are the same classes.
    first = write_table(
        tmp_path / "fixed.csv", centroids(pair.fixed) | {"target": [f" {g} " for g in genes[ours]]}
    )
    second = write_table(
        tmp_path / "moving.parquet",
        centroids(pair.moving, "axis-{}")
        | {"gene": pa.array(genes[theirs].tolist()).dictionary_encode()},
    )
    names = (
        "--columns", f"{CENTROIDS},class=target",
        "--moving-columns", "z=axis-0,y=axis-1,x=axis-2,class=gene",
        "--set", "initial.max_rotation=0",
    )  # fmt: skip
    result = run("match", first, second, tmp_path / "out", *names)
    assert result.exit_code == 0, result.stderr
    assert error_of(tmp_path / "out", pair) < 2.0
    found = read_matches(tmp_path / "out" / "matches.parquet")
    assert (ours[found.fixed_index] == theirs[found.moving_index]).all()
    plain = [text.replace(",class=target", "").replace(",class=gene", "") for text in names]
    assert run("match", first, second, tmp_path / "none", *plain).exit_code == 1


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    points = np.arange(12.0).reshape(4, 3)
    tables = [
        write_table(tmp_path / name, centroids(points) | {"cluster": [3, 3, 10, 0]})
        for name in ("a.csv", "a.parquet")
    ]
    for table in tables:
        spots = read_spots(table, Columns.parse(f"{CENTROIDS},class=cluster"))
        assert spots.spot_class is not None
        assert spots.spot_class.tolist() == ["3", "3", "10", "0"]


def test_spots_are_written_with_their_class(tmp_path: Path) -> None:
    points = np.arange(12.0).reshape(4, 3)
    spots = Spots.at(
        points, spot_class=np.array(["a", "b", "a", "c"]), weight=np.array([0.0, 0.5, 1.0, 0.25])
    )
    write_spots(tmp_path / "spots.parquet", spots)
    again = read_spots(tmp_path / "spots.parquet", Columns.parse("class=class,weight=weight"))
    np.testing.assert_array_equal(again.positions, points)
    assert again.spot_class is not None
    assert again.spot_class.tolist() == ["a", "b", "a", "c"]
    assert again.weight is not None
    assert again.weight.tolist() == [0.0, 0.5, 1.0, 0.25]
    # Nobody asked for them here.
    plain = read_spots(tmp_path / "spots.parquet")
    assert plain.spot_class is None
    assert plain.weight is None
    both = Spots.concatenate([again.take(np.arange(2)), again.take(np.arange(2, 4))])
    assert both.spot_class is not None
    assert both.spot_class.tolist() == ["a", "b", "a", "c"]


def test_voxels_of_an_image(tmp_path: Path) -> None:
    """Where there is an image its grid says where voxels are, its origin too."""
    points = np.array([[0.0, 0, 0], [1, 2, 3]])
    table = write_table(tmp_path / "a.csv", {"z": points[:, 0], "y": points[:, 1],
                                             "x": points[:, 2], "sigma": [1.0, 2.0]})  # fmt: skip
    grid = Grid(shape=(9, 9, 9), spacing=(2.0, 0.5, 0.5), origin=(10.0, 0.0, -1.0))
    voxels = spots_of(table, settings("spots.unit=voxel"), "fixed", grid)
    np.testing.assert_allclose(voxels.positions, [[10, 0, -1], [12, 1, 0.5]])
    assert np.isnan(voxels.sigma).all()
    # A spacing goes before the image; micrometre are micrometre.
    chosen = settings("spots.unit=voxel", "spots.spacing=3.0")
    np.testing.assert_allclose(spots_of(table, chosen, "fixed", grid).positions, 3 * points)
    plain = spots_of(table, Settings(), "fixed", grid)
    np.testing.assert_allclose(plain.positions, points)
    assert plain.sigma.tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match=r"no image that says.*--spacing"):
        spots_of(table, settings("spots.unit=voxel"), "fixed")
    with pytest.raises(InputError, match=r"has 2 numbers, positions in .* have 3 axes"):
        spots_of(table, settings("spots.spacing=[1, 1]"), "fixed")
    flat = Grid(shape=(9, 9), spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="have 3 axes, the fixed image has 2"):
        spots_of(table, settings("spots.unit=voxel"), "fixed", flat)


def test_columns_of_the_moving_table_go_before_those_of_both() -> None:
    chosen = settings("spots.columns=class=a", "spots.moving_columns=class=b")
    assert columns_of(chosen, "fixed").spot_class == "a"
    assert columns_of(chosen, "moving").spot_class == "b"
    assert columns_of(settings("spots.columns=class=a"), "moving").spot_class == "a"
    assert columns_of(Settings(), "moving") == Columns()


@pytest.mark.parametrize(
    ("text", "axes", "others"),
    [
        ("z=a,y=b,x=c", ("a", "b", "c"), (None, None)),
        (" x = c , y = b d ", ("b d", "c"), (None, None)),
        ("class=gene,weight=p", None, ("gene", "p")),
    ],
)
def test_columns_are_parsed(text: str, axes: Any, others: Any) -> None:
    columns = Columns.parse(text)
    assert columns.axes == axes
    assert (columns.spot_class, columns.weight) == others


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not understood"),
        ("z", "'z' is not understood"),
        ("z=", "'z=' is not understood"),
        ("q=a", "'q=a' is not understood"),
        ("y=a,y=b,x=c", "'y=b' is not understood"),
        ("z=a,x=b", "they name z, x alone"),
    ],
)
def test_wrong_columns_are_explained(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Columns.parse(text)
    with pytest.raises(SettingsError, match=words):
        Settings(spots={"columns": text})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("columns", "chosen", "words"),
    [
        (("y", "x"), "z=a,y=y,x=x", "Missing column a in .*Present are: y, x"),
        (("centroid-0", "centroid-1"), "", r"Missing columns y, x.*--columns y=centroid-0,x=cent"),
        (("axis-0", "axis-1", "axis-2"), "", "--columns z=axis-0,y=axis-1,x=axis-2"),
        (("a", "b"), "", "--columns z=centroid-0,y=centroid-1,x=centroid-2"),
        (("y", "x"), "class=gene", "Missing column gene in .*Present are: y, x"),
        (("y", "x"), "weight=p", "Missing column p in"),
    ],
)
def test_a_missing_column_is_named(
    tmp_path: Path, columns: tuple[str, ...], chosen: str, words: str
) -> None:
    table = write_table(tmp_path / "table.csv", {key: [1.0, 2.0] for key in columns})
    wanted = Columns.parse(chosen) if chosen else None
    with pytest.raises(InputError, match=words) as caught:
        read_spots(table, wanted)
    assert "table.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("class", ["a", "", "b"], "has 1 empty rows, the first is row 1"),
        ("class", [None, "a", None], "has 2 empty rows, the first is row 0"),
        ("class", [1.0, 2.0, 3.0], "holds double. Classes are integers or text"),
        ("weight", [0.1, 1.5, 0.2], "holds 1.5 in row 1"),
        ("weight", [0.1, 0.2, None], "holds nan in row 2"),
        ("weight", ["a", "b", "c"], "holds 'a' in row 0"),
    ],
)
def test_wrong_entries_are_named(
    tmp_path: Path, column: str, values: list[Any], words: str
) -> None:
    table = write_table(
        tmp_path / "table.parquet", {"y": [1.0, 2, 3], "x": [1.0, 2, 3], "k": values}
    )
    with pytest.raises(InputError, match=words):
        read_spots(table, Columns.parse(f"{column}=k"))


def test_an_option_that_is_no_number() -> None:
    result = run("match", "a.csv", "b.csv", "out", "--spacing", "1;2")
    assert result.exit_code == 2
    assert "--spacing 1;2: one number is needed" in result.stderr


@pytest.mark.parametrize("style", ["{side}_{axis}", "{axis}_{side}"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_landmarks_are_read(tmp_path: Path, ndim: int, suffix: str, style: str) -> None:
    rng = np.random.default_rng(0)
    points = {side: rng.uniform(0, 9, (5, ndim)) for side in ("fixed", "moving")}
    columns = {
        style.format(side=side, axis=axis): cloud[:, i]
        for side, cloud in points.items()
        for i, axis in enumerate("zyx"[-ndim:])
    }
    table = write_table(tmp_path / f"pairs{suffix}", {"name": list("abcde"), **columns})
    found = read_landmarks(table)
    np.testing.assert_array_equal(found.fixed, points["fixed"])
    np.testing.assert_array_equal(found.moving, points["moving"])
    assert found.weight.tolist() == [1.0] * 5
    weighted = write_table(tmp_path / f"heavy{suffix}", {**columns, "weight": [0, 1, 2, 0.5, 1]})
    assert read_landmarks(weighted).weight.tolist() == [0, 1, 2, 0.5, 1]


def test_landmarks_are_written(tmp_path: Path) -> None:
    marks = Landmarks.of(np.eye(3), 2 * np.eye(3), [1.0, 0.5, 3.0])
    for name in ("a.csv", "a.parquet"):
        write_landmarks(tmp_path / name, marks)
        again = read_landmarks(tmp_path / name)
        np.testing.assert_array_equal(again.moving, marks.moving)
        np.testing.assert_array_equal(again.weight, marks.weight)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"fixed_y": [1.0], "fixed_x": [1.0]}, "Missing columns moving_y, moving_x"),
        ({"y": [1.0], "x": [1.0]}, "Missing columns fixed_y, fixed_x"),
        ({"fixed_z": [1.0]}, "Missing columns fixed_y, fixed_x"),
        (
            {key: [1.0] for key in ("fixed_y", "fixed_x", "moving_y", "moving_x")}
            | {"weight": [-1]},
            "In '.*pairs.csv': Invalid weight -1.0 of landmark 0",
        ),
        ({key: [] for key in ("fixed_y", "fixed_x")}, "has no rows"),
    ],
)
def test_wrong_landmarks_are_explained(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    table = write_table(tmp_path / "pairs.csv", columns)
    with pytest.raises(InputError, match=words):
        read_landmarks(table)


def test_landmarks_from_a_file(pair: Pair, tmp_path: Path) -> None:
    """They are told with their residuals, and a wrong one is named, whatever is fitted last."""
    tables = [
        write_table(tmp_path / f"{name}.csv", dict(zip("zyx", cloud.T, strict=True)))
        for name, cloud in (("fixed", pair.fixed), ("moving", pair.moving))
    ]
    points = np.random.default_rng(0).uniform(10, 60, (6, 3))
    partners = pair.true_map(points)
    partners[4, 2] += 30.0
    marks = write_table(
        tmp_path / "marks.csv",
        {f"fixed_{a}": points[:, i] for i, a in enumerate("zyx")}
        | {f"moving_{a}": partners[:, i] for i, a in enumerate("zyx")},
    )
    for model in ("auto", "thin-plate", "polynomial"):
        out = tmp_path / model
        result = run("match", *tables, out, "--landmarks", marks, "--set", f"field.model={model}")
        assert result.exit_code == 0, result.stderr
        assert "1 of 6 landmarks" in result.stdout
        assert "number 4 at" in result.stdout
        told = pyarrow.parquet.read_table(out / "landmarks.parquet")
        assert told["is_contradicted"].to_pylist() == [row == 4 for row in range(6)]
        transform = read_transform(out / "transform.ome.zarr")
        residual = np.linalg.norm(transform(points) - partners, axis=1)
        np.testing.assert_allclose(told["residual"].to_numpy(), residual, atol=1e-6)
        qc = json.loads((out / "qc.json").read_text())
        assert qc["landmarks"]["contradicted"] == [4]
        assert qc["landmarks"]["residual_um"] == pytest.approx(residual.tolist())
        assert "1 of 6 landmarks" in qc["warnings"][0]
        assert error_of(out, pair) < 1.5
        assert (read_matches(out / "matches.parquet").fixed_index >= 0).all()


def test_fingerprints_are_those_of_the_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("a\n1\n")
    two.write_text("a\n1\n")
    first, second = (fingerprints(settings(f"match.landmarks={p}")) for p in (one, two))
    assert first == second
    assert list(first) == ["landmarks_fingerprint"]
    two.write_text("a\n2\n")
    assert fingerprints(settings(f"match.landmarks={two}")) != first
    assert fingerprints(Settings()) == {}
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        fingerprints(settings("match.landmarks=nowhere.csv"))
