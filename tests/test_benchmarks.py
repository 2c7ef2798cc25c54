"""The benchmarks' small settings, and the parts that the figures rest on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from benchmarks import hard, judge, methods, results_files, running, splines, summaries
from benchmarks.__main__ import main, parse
from benchmarks.cases import Case, Detections, Truth, describe_detections
from benchmarks.methods.scene import Scene
from benchmarks.splines import spacing_of
from benchmarks.spot_clouds import CloudSpec, make_clouds
from benchmarks.worker import WARM_UP, Job, Reply, registered_image
from tilereg.synthetic import BenchmarkVariant

ROOT = Path(__file__).parents[1]
SMALL = Case(volume=((16, 96, 96), 70), field="polynomial_small", seed=1)


def is_missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def scene_of(case: Case, noise: float = 0.02) -> tuple[Scene, Truth]:
    pair = case.make()
    found = Detections.without_images(pair, noise)
    scene = Scene(
        pair=pair,
        reference=pair.reference,
        moving=pair.moving,
        fixed_spots=found.fixed,
        moving_spots=found.moving,
        spacing=np.asarray(pair.grid.spacing),
    )
    return scene, Truth.of(pair)


def judged(method: str, case: Case = SMALL) -> dict[str, Any]:
    scene, truth = scene_of(case)
    found = methods.METHODS[method].load()(scene)
    predicted = found.map(truth.points * scene.spacing) / scene.spacing
    return judge.judge_map(truth, predicted)


@pytest.fixture(scope="module")
def seed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seed")
    wanted = "identity,tilereg,spline-oracle,true-field"
    main(["seed", "--small", "--methods", wanted, "--output", str(folder)])
    return folder


def figures_of(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_seed_judges_all_methods(seed_run: Path) -> None:
    found = figures_of(seed_run, "seed")
    rows = {row["method"]: row for row in found["runs"]}
    assert {row["status"] for row in rows.values()} == {"ok"}
    errors = {name: row["errors"]["spots"]["median"] for name, row in rows.items()}
    assert errors["true-field"] < 1e-6
    assert errors["spline-oracle"] < 0.3 < errors["identity"]
    assert errors["tilereg"] < 0.3
    ncc = {name: row["image"]["ncc"] for name, row in rows.items()}
    assert ncc["identity"] < ncc["tilereg"] <= ncc["true-field"] + 0.02
    for row in rows.values():
        assert row["total_seconds"] > 0
        assert row["errors"]["grid_inside"]["count"] > 20
    assert rows["tilereg"]["total_seconds"] > rows["tilereg"]["seconds"]
    assert found["machine"]["cpus"] >= 1


def test_seed_writes_its_files(seed_run: Path) -> None:
    text = (seed_run / "seed.md").read_text()
    assert "| `tilereg` |" in text
    pictures = {path.stem for path in seed_run.glob("*.png")}
    assert {"seed_errors", "seed_polynomial_small", "seed_inspection_tilereg"} <= pictures


def test_seed_goes_on_where_it_was(seed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = figures_of(seed_run, "seed")["runs"]
    main(["seed", "--small", "--methods", "identity,true-field", "--output", str(seed_run)])
    captured = capsys.readouterr()
    assert "2 runs, 2 of them are there already." in captured.err
    kept = {row["method"]: row for row in before}
    for row in figures_of(seed_run, "seed")["runs"]:
        assert row == kept[row["method"]]


def test_hard_runs_small(tmp_path: Path) -> None:
    wanted = ["--only", "drop_out", "--methods", "identity,mutual-nn-affine"]
    main(["hard", "--small", *wanted, "--output", str(tmp_path)])
    found = figures_of(tmp_path, "hard")
    assert {row["value"] for row in found["runs"]} == {0, 0.1}
    until = {row["method"]: row["until"] for row in found["holds_until"]}
    assert until["identity"] is None
    assert until["mutual-nn-affine"] is not None
    assert (tmp_path / "hard_drop_out.png").exists()
    assert "What breaks where" in (tmp_path / "hard.md").read_text()


def test_clouds_run_small(tmp_path: Path) -> None:
    main(["clouds", "--small", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "clouds.json").read_text())
    rows = {row["name"]: row for row in figures["runs"]}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["sizes"]["rms"] < 0.3
    assert 0 < rows["sizes"]["cpu_seconds"] < 100
    text = (tmp_path / "clouds.md").read_text()
    assert "| 600 |" in text
    assert "bumps of 20 over 80" in text
    assert (tmp_path / "clouds_sizes.png").exists()
    engines = [row for row in figures["runs"] if row["name"] == "engines, overlap 0.75"]
    assert [row["method"] for row in engines] == ["tilereg", "tilereg:icp"]
    assert max(row["rms"] for row in engines) < 0.3
    assert "| engines, overlap 0.75, 600 |" in text


def test_the_test_cloud_is_what_it_says() -> None:
    clouds = make_clouds(CloudSpec(2000, seed=3, overlap=0.6, noise=0.2, rotation=180.0))
    paired = clouds.partner >= 0
    assert paired.mean() == pytest.approx(0.6, abs=1e-3)
    misses = clouds.map(clouds.fixed[paired]) - clouds.moving[clouds.partner[paired]]
    # Noise of both clouds, one of them through the map.
    assert misses.std() == pytest.approx(0.2 * np.sqrt(2), rel=0.05)
    assert spacing_of(clouds.fixed) == pytest.approx(12, rel=0.05)
    bumps = np.linalg.norm(clouds.map.bumps(clouds.fixed), axis=1)
    assert 8 < bumps.max() < 12
    far = clouds.fixed[:50] + [0.0, 0.0, 700.0]
    plain = np.exp(-0.5 * (cdist(far, clouds.map.centres) / 150) ** 2) @ clouds.map.amplitudes
    np.testing.assert_allclose(clouds.map.bumps(far), plain, atol=1e-4)
    again = make_clouds(clouds.spec)
    np.testing.assert_array_equal(again.moving, clouds.moving)


def test_parameters_runs_small(tmp_path: Path) -> None:
    # As a user starts it: the command sets the threads of the process before numpy is loaded.
    command = [sys.executable, "-m", "benchmarks", "parameters", "--small", "--only", "w"]
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (row,) = figures_of(tmp_path, "parameters")["comparison"]
    assert row["default_median"] < 0.5
    assert row["best_median"] == min(v for k, v in row["errors"].items() if k != "default")
    assert 0.3 < row["true_outliers"] < 0.5
    assert (tmp_path / "parameters_w.png").exists()


@pytest.mark.parametrize(
    "method", ["mutual-nn", "mutual-nn-affine", "ransac", "icp", "transport", "detected-oracle"]
)
def test_point_methods_recover_an_easy_pair(method: str) -> None:
    error = judged(method)
    assert error["spots"]["median"] < 0.15
    assert error["found"] > 0.9
    assert judged("identity")["spots"]["median"] > 0.5


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # pycpd compares numbers with `is`.
@pytest.mark.parametrize("method", ["pycpd", "recipe", "biocpd"])
def test_drift_of_other_packages_recovers_an_easy_pair(method: str) -> None:
    pytest.importorskip("biocpd" if method == "biocpd" else "pycpd")
    error = judged(method)
    assert error["spots"]["median"] < 0.15
    assert error["spots"]["count"] > 50


def test_demons_have_the_right_direction() -> None:
    pytest.importorskip("SimpleITK")
    # Broad blobs, which intensity can follow: half a voxel apart, and no noise worth speaking of.
    scene, truth = scene_of(
        Case(
            volume=((12, 48, 48), 25),
            field="polynomial_small",
            seed=0,
            variant=BenchmarkVariant(amplitude_to_noise=1e6),
        )
    )
    found = methods.METHODS["demons"].load()(scene)
    spots = truth.points[truth.is_spot]
    before = np.linalg.norm(spots - truth.true[truth.is_spot], axis=1)
    after = np.linalg.norm(found.map(spots) - truth.true[truth.is_spot], axis=1)
    assert np.median(after) < 0.7 * np.median(before)
    assert found.image is not None
    gap = np.abs(found.image - scene.reference)[2:-2, 5:-5, 5:-5].mean()
    unmoved = np.abs(scene.moving.astype(float) - scene.reference)[2:-2, 5:-5, 5:-5].mean()
    assert gap < 0.7 * unmoved


def test_methods_that_are_not_there_are_reported(tmp_path: Path) -> None:
    if not is_missing("probreg"):
        pytest.skip("probreg is installed")
    plan = running.Plan(
        work=[(SMALL, ("probreg",))],
        ledger=results_files.Ledger(tmp_path / "ledger.jsonl"),
        with_images=False,
    )
    (row,) = running.run_plan(plan)
    assert row["status"] == "unavailable"
    assert "probreg" in row["reason"]


def test_a_method_that_takes_too_long_is_stopped_and_reported(tmp_path: Path) -> None:
    plan = running.Plan(
        work=[(SMALL, ("transport",))],
        ledger=results_files.Ledger(tmp_path / "ledger.jsonl"),
        time_limit=0.0,
        with_images=False,
    )
    (row,) = running.run_plan(plan)
    assert row["status"] == "failed"
    assert row["reason"].startswith("Stopped after 0 s")
    assert row["errors"] is None


def test_truth_knows_what_is_visible() -> None:
    pair = SMALL.make()
    truth = Truth.of(pair)
    last = np.array(pair.grid.shape) - 1
    assert ((truth.true >= 0) & (truth.true <= last)).all()
    np.testing.assert_allclose(pair.pull(truth.true), truth.points, atol=1e-9)
    assert truth.is_spot.sum() == pair.visible(pair.spots).sum()
    assert truth.is_inside[truth.is_shared].all()
    assert not truth.is_inside[~truth.is_spot].all()
    assert truth.fold_share == 0


def test_judge_of_a_known_error() -> None:
    truth = Truth.of(SMALL.make())
    shift = np.where(truth.is_spot, 2.0, 0.5)[:, None] * [0.0, 0.6, 0.8]
    error = judge.judge_map(truth, truth.true + shift)
    assert error["spots"]["median"] == pytest.approx(2.0)
    assert error["grid"]["p95"] == pytest.approx(0.5)
    assert error["found"] == 0.0
    moved = np.linalg.norm(truth.true - truth.points, axis=1)[truth.is_spot] > 1
    assert 0 < error["spots_moved"]["count"] == moved.sum() < error["spots"]["count"]
    assert judge.judge_map(truth, truth.true)["found"] == 1.0


def test_detections_are_counted() -> None:
    pair = SMALL.make()
    rows = describe_detections(pair, Detections.without_images(pair, 0.05))
    assert rows["fixed"]["recall"] > 0.9
    assert rows["fixed"]["precision"] > 0.9
    assert rows["moving"]["error_an_axis"] == pytest.approx(0.05, rel=0.3)


def test_registered_image_of_an_affine_map_is_exact() -> None:
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 255, (9, 30, 31)).astype(np.uint8)
    spacing = np.array([2.0, 1.0, 1.0])
    shifted = registered_image(lambda p: p + [2.0, 3.0, -4.0], moving, spacing)
    np.testing.assert_array_equal(shifted[:-1, :-3, 4:], moving[1:, 3:, :-4])
    assert not shifted[-1].any()


def test_registered_image_fills_what_a_map_leaves_open() -> None:
    moving = np.full((8, 20, 20), 7, dtype=np.uint8)

    def map_(points: np.ndarray) -> np.ndarray:
        return np.where(points[:, 2:] > 25, np.nan, points)

    np.testing.assert_array_equal(registered_image(map_, moving, np.ones(3)), moving)


def test_leave_one_out_is_what_leaving_out_gives() -> None:
    rng = np.random.default_rng(2)
    x, values = rng.uniform(0, 5, (25, 3)), rng.normal(size=(25, 3))
    residuals = splines._leave_one_out(x, values)(0.3)
    from scipy.interpolate import RBFInterpolator

    for row in (0, 7, 24):
        rest = np.arange(25) != row
        fit = RBFInterpolator(x[rest], values[rest], kernel="thin_plate_spline", smoothing=0.3)
        np.testing.assert_allclose(residuals[row], (values[row] - fit(x[[row]]))[0], atol=1e-8)


def test_spline_reproduces_affine_maps_and_drops_wrong_pairs() -> None:
    rng = np.random.default_rng(3)
    fixed = rng.uniform(0, 100, (80, 3))
    matrix = np.eye(3) + rng.normal(0, 0.02, (3, 3))
    moving = fixed @ matrix.T + [3.0, -2.0, 5.0]
    wrong = moving.copy()
    wrong[:6] += rng.uniform(15, 25, (6, 3))
    map_, kept = splines.fit_robust_spline(fixed, wrong)
    assert not kept[:6].any()
    assert kept[6:].all()
    np.testing.assert_allclose(map_(fixed), moving, atol=1e-3)


def test_ledger_survives_a_line_that_was_cut_off(tmp_path: Path) -> None:
    ledger = results_files.Ledger(tmp_path / "a" / "ledger.jsonl")
    ledger.add({"case": "1", "method": "x", "value": float("nan")})
    with ledger.path.open("a") as file:
        file.write('{"case": "2", "meth')
    ledger.add({"case": "3", "method": "y"})
    assert [row["case"] for row in ledger.rows()] == ["1", "3"]
    assert next(ledger.rows())["value"] is None
    ledger.drop(["x"])
    assert [row["method"] for row in ledger.rows()] == ["y"]
    ledger.drop(["all"])
    assert not list(ledger.rows())


def test_ledger_forgets_results_of_other_code(tmp_path: Path) -> None:
    ledger = results_files.Ledger(tmp_path / "ledger.jsonl")
    ledger.add({"case": "1", "method": "x"})
    ledger.add({"case": "2", "method": "x", "code": "of old"})
    with ledger.path.open("a") as file:
        file.write('{"case": "3", "method": "y"}\n')
    ledger.drop(["z"])
    assert [row["code"] for row in ledger.rows()][1:] == ["of old", None]
    ledger.drop(["stale"])
    assert [row["case"] for row in ledger.rows()] == ["1"]


def test_case_keys_tell_pairs_apart() -> None:
    other = Case(**{**vars(SMALL), "variant": BenchmarkVariant(jump=2.0)})
    assert SMALL.key == Case(**vars(SMALL)).key
    assert SMALL.key != other.key
    assert "jump" in other.key


def test_what_breaks_where() -> None:
    def row(value: float, median: float | None, status: str = "ok") -> dict[str, Any]:
        errors = {"spots_moved": {"median": median}}
        return {"field": "f", "method": "m", "axis": "a", "value": value, "status": status,
                "errors": errors}  # fmt: skip

    good = [row(1, 0.1), row(2, 0.4), row(3, 0.6), row(4, 0.1)]
    (found,) = hard.holds_until(good)
    assert (found["until"], found["good"]) == (2, [1, 2, 4])
    assert hard._ranges(found) == "1 - 2, 4"
    assert hard.holds_until([row(1, 0.1, "no registration")])[0]["until"] is None
    assert hard.holds_until([row(1, None, "failed")])[0]["until"] is None


def test_results_have_a_line_a_row(tmp_path: Path) -> None:
    content = {"seeds": 2, "runs": [{"a": 1.23456789, "b": None}, {"a": [2.0, np.inf]}], "none": []}
    results_files.write_results("x", content, "# X", tmp_path)
    text = (tmp_path / "x.json").read_text()
    found = json.loads(text)
    assert found["runs"] == [{"a": 1.23457, "b": None}, {"a": [2.0, None]}]
    assert (found["seeds"], found["none"]) == (2, [])
    assert '{"a": 1.23457, "b": null},' in text.splitlines()


def test_numbers_and_spreads() -> None:
    write = results_files.number
    assert [write(v) for v in (0.01234, 1.5, 123.4, 2.9e-6, 0.0, None, float("nan"))] == [
        "0.0123", "1.50", "123", "3e-06", "0", "-", "-",
    ]  # fmt: skip
    rows = [{"a": {"b": v}} for v in (1.0, 3.0, 2.0)]
    assert summaries.spread(rows, "a.b") == "2.00 (1.00 - 3.00)"
    assert summaries.spread([{"a": None}], "a.b") == "-"


def test_command_line_knows_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    name, options = parse(["seed", "--methods", "a,b", "--seeds", "2"])
    assert (name, options.methods, options.seeds) == ("seed", ("a", "b"), 2)
    with pytest.raises(SystemExit):
        parse(["seeds"])
    assert "NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["seed", "--seeds", "0"])
    with pytest.raises(SystemExit):
        parse(["seed", "--small"])
    assert "must not replace the published results" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="Unknown preset 'a'"):
        main(["seed", "--only", "a"])
    with pytest.raises(SystemExit, match="Unknown method 'a'"):
        main(["seed", "--methods", "a"])
    with pytest.raises(SystemExit, match="data set 'easifish'"):
        main(["easifish"])


def test_jobs_load_their_images(tmp_path: Path) -> None:
    paths = (tmp_path / "a.npy", tmp_path / "b.npy")
    for value, path in enumerate(paths):
        np.save(path, np.full((2, 2, 2), value, np.uint8))
    pair = WARM_UP.make()
    job = Job(
        case=WARM_UP,
        images=paths,
        detections=Detections.without_images(pair, 0.1),
        points=pair.spots,
        wants_image=True,
    )
    scene = job.scene()
    assert scene.moving.max() == 1
    assert len(scene.fixed) == len(pair.spots)
    assert Reply(status="ok").predicted is None
