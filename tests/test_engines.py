"""Theorems that hold for every engine, and what each refuses; their parts against plain twins."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from clouds import Pair, make_pair
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from tilereg import Affine, InputError, match_spots
from tilereg.affine import fit_affine
from tilereg.cli import app
from tilereg.config import Settings
from tilereg.field import mean_spacing
from tilereg.matching import METHODS, Match
from tilereg.matching.coarse import Coarse
from tilereg.matching.engines import check_given, check_installed, engine
from tilereg.matching.from_pairs import deviation
from tilereg.matching.pairing import mutual_neighbours
from tilereg.matching.problem import Problem
from tilereg.matching.ransac import consensus
from tilereg.matching.shelves import Shelves
from tilereg.matching.transport import assign
from tilereg.sections import MatchSettings

Floats = NDArray[np.float64]

PROBREG = ("probreg", "probreg-filterreg")
OWN = tuple(method for method in METHODS if method not in PROBREG)
NEEDS_PROBREG = pytest.mark.skipif(
    find_spec("probreg") is None, reason="probreg is not installed: pip install 'tilereg[probreg]'"
)
ENGINES = (*OWN, *(pytest.param(method, marks=NEEDS_PROBREG) for method in PROBREG))


def scatter(count: int, ndim: int, seed: int = 0) -> Floats:
    """Return uniform points some twelve apart."""
    side = 12.0 * (count / (0.17 if ndim == 3 else 0.25)) ** (1 / ndim)
    return np.random.default_rng(seed).uniform(0, side, (count, ndim))


def rotation(ndim: int, degrees: float) -> Floats:
    if ndim == 2:
        return np.asarray(Rotation.from_euler("z", degrees, degrees=True).as_matrix()[:2, :2])
    turn = np.deg2rad(degrees) * np.array([0.48, 0.6, 0.64])
    return np.asarray(Rotation.from_rotvec(turn).as_matrix())


def error(match: Match, pair: Pair) -> float:
    gap = match.transform(pair.fixed) - pair.true_map(pair.fixed)
    return float(np.median(np.linalg.norm(gap, axis=1)))


def inner_problem(pair: Pair, **options: Any) -> Problem:
    """Return clouds in mean spacings, every tenth fixed spot held out."""
    unit = mean_spacing(pair.fixed)
    fixed, moving = pair.fixed / unit, pair.moving / unit
    held = np.zeros(len(fixed), dtype=bool)
    held[::10] = True
    return Problem(
        fixed=fixed, moving=moving, low=fixed.min(axis=0), high=fixed.max(axis=0), held=held,
        **({"w": 0.9, "beta": None, "field": "auto", "max_iterations": 100} | options),
    )  # fmt: skip


def true_pose(pair: Pair) -> Coarse:
    """Return the affine map that is nearest to the true one, in mean spacings."""
    unit = mean_spacing(pair.fixed)
    affine = fit_affine(pair.fixed / unit, pair.true_map(pair.fixed) / unit)
    return Coarse(affine, -20.0, "given", 0, 1.0)


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_cloud_stays(method: str, ndim: int) -> None:
    points = scatter(300, ndim)
    match = match_spots(points, points, method=method)
    assert match.is_ok
    assert match.model in ("translation", "rigid")
    np.testing.assert_allclose(match.transform(points), points, atol=1e-9)
    assert (match.correspondences.fixed_index == match.correspondences.moving_index).all()


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_rigid_move_is_found_exactly(method: str, ndim: int) -> None:
    points = scatter(300, ndim)
    moved = points @ rotation(ndim, 40.0).T + 500.0
    # A quarter of either cloud has no partner.
    match = match_spots(points[:250], moved[50:], method=method)
    assert match.is_ok
    assert match.model == "rigid"
    np.testing.assert_allclose(match.transform(points), moved, atol=1e-6)


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize(("count", "ndim", "most"), [(300, 3, 0.35), (800, 3, 0.2), (500, 2, 0.3)])
def test_a_smooth_deformation_is_found(method: str, count: int, ndim: int, most: float) -> None:
    pair = make_pair(count, ndim=ndim)
    match = match_spots(pair.fixed, pair.moving, method=method)
    assert match.is_ok
    if count > 300:
        assert match.details["field"] == "kriging"
    assert error(match, pair) < most
    pairs = match.correspondences
    assert (pair.partner[pairs.fixed_index] == pairs.moving_index).mean() > 0.97
    assert abs(match.w - 0.25) < 0.15
    assert match.residual_sigma == pytest.approx(0.3 * np.sqrt(2), rel=0.25)


@pytest.mark.parametrize("method", ENGINES)
def test_few_have_a_partner(method: str) -> None:
    pair = make_pair(1000, overlap=0.4)
    match = match_spots(pair.fixed, pair.moving, method=method)
    assert match.is_ok
    assert error(match, pair) < 0.3
    assert abs(match.w - 0.6) < 0.1


@pytest.mark.parametrize("method", ENGINES)
def test_narrow_bumps_are_followed(method: str) -> None:
    """Nine voxels over sixty: most pairs are off by more than half the distance of spots."""
    pair = make_pair(1000, bump=9.0, width=60.0)
    match = match_spots(pair.fixed, pair.moving, method=method)
    assert match.is_ok
    assert error(match, pair) < 0.35


@pytest.mark.parametrize("method", ENGINES)
def test_the_unit_changes_nothing_but_units(method: str) -> None:
    pair = make_pair(300)
    match = match_spots(pair.fixed, pair.moving, method=method)
    for unit in (1e-3, 1e3):
        other = match_spots(pair.fixed * unit, pair.moving * unit, method=method)
        np.testing.assert_array_equal(
            other.correspondences.moving_index, match.correspondences.moving_index
        )
        np.testing.assert_allclose(
            other.transform(pair.fixed * unit) / unit, match.transform(pair.fixed), atol=0.02
        )


@pytest.mark.parametrize("method", ENGINES)
def test_order_changes_nothing_and_the_same_gives_the_same(method: str) -> None:
    pair = make_pair(300, ndim=2)
    rng = np.random.default_rng(3)
    rows, others = rng.permutation(300), rng.permutation(300)
    match = match_spots(pair.fixed, pair.moving, method=method)
    again = match_spots(pair.fixed, pair.moving, method=method)
    np.testing.assert_array_equal(again.transform(pair.fixed), match.transform(pair.fixed))
    assert again.evidence == match.evidence
    other = match_spots(pair.fixed[rows], pair.moving[others], method=method)
    np.testing.assert_allclose(other.transform(pair.fixed), match.transform(pair.fixed), atol=1e-6)
    found = other.correspondences
    assert set(zip(rows[found.fixed_index], others[found.moving_index], strict=True)) == set(
        zip(match.correspondences.fixed_index, match.correspondences.moving_index, strict=True)
    )


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("field", ["auto", "coherent"])
def test_held_out_spots_never_enter_a_fit(method: str, field: str) -> None:
    pair = make_pair(500)
    problem = inner_problem(pair, field=field)
    noise = np.random.default_rng(5).normal(0, 0.02, problem.fixed.shape)
    nudged = np.clip(problem.fixed + noise * problem.held[:, None], problem.low, problem.high)
    other = replace(problem, fixed=nudged)
    assert (other.fitted == problem.fitted).all()
    maps = [engine(method)(p, true_pose(pair)).map for p in (problem, other)]
    np.testing.assert_array_equal(maps[1](problem.fixed), maps[0](problem.fixed))


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [12, 40, 200])
def test_unrelated_clouds_are_no_registration(method: str, ndim: int, count: int) -> None:
    """From a given pose: else the search of one would end it before the engine begins."""
    clouds = np.random.default_rng(count).uniform(0, 300, (2, count, ndim))
    match = match_spots(*clouds, method=method, initial=Affine.identity(ndim))
    assert match.status == "no registration"
    assert match.details["pose"]["source"] == "given"


@pytest.mark.parametrize("method", ENGINES)
def test_a_far_pose_is_no_registration(method: str) -> None:
    points = scatter(200, 3)
    match = match_spots(points, points + 1e4, method=method, initial=Affine.identity(3))
    assert match.status == "no registration"


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_spots(method: str, count: int) -> None:
    points = scatter(10, 3)[:count]
    assert match_spots(points, points, method=method).status == "few spots"


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("count", [4, 5, 7, 12])
def test_hardly_enough_spots(method: str, count: int) -> None:
    points = scatter(12, 3)[:count]
    pose = Affine(np.eye(3), np.full(3, 5.1))
    match = match_spots(points, points + 5.0, method=method, initial=pose)
    np.testing.assert_allclose(match.transform(points), points + 5.0, atol=1e-3)


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["twice", "plane", "line"])
def test_points_in_a_plane_and_at_one_place(method: str, ndim: int, kind: str) -> None:
    points = scatter(200, ndim)
    if kind == "twice":
        points = np.repeat(points[:100], 2, axis=0)
    else:
        points[:, : 1 if kind == "plane" else ndim - 1] = 7.0
    pose = Affine(np.eye(ndim), np.full(ndim, 3.0)) if kind == "line" else None
    match = match_spots(points, points + 3.0, method=method, initial=pose)
    assert match.is_ok
    np.testing.assert_allclose(match.transform(points), points + 3.0, atol=1e-3)


@pytest.mark.parametrize("method", ENGINES)
def test_a_field_and_a_width_that_are_asked_for(method: str) -> None:
    pair = make_pair(500)
    coherent = match_spots(pair.fixed, pair.moving, method=method, field="coherent")
    assert coherent.details["field"] == "coherent"
    wide = match_spots(pair.fixed, pair.moving, method=method, beta=100.0)
    assert wide.details["field"] == "coherent"
    assert wide.beta == pytest.approx(100.0)
    kriging = match_spots(pair.fixed, pair.moving, method=method, field="kriging")
    assert kriging.details["field"] == "kriging"
    for match in (coherent, wide, kriging):
        assert match.is_ok
        assert error(match, pair) < 0.35


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("ndim", [2, 3])
def test_only_like_spots_are_paired(method: str, ndim: int) -> None:
    """Four classes at a noise of a third of the distance: unlike spots are often nearer."""
    pair = make_pair(600, ndim=ndim, noise=2.5, rotation=0.0)
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 4, 600)
    ours = np.where(pair.partner >= 0, theirs[pair.partner], rng.integers(0, 4, 600))
    match = match_spots(
        pair.fixed,
        pair.moving,
        method=method,
        initial=Affine(np.eye(ndim), np.full(ndim, 20.0)),
        fixed_class=ours,
        moving_class=theirs,
    )
    assert match.is_ok
    found = match.correspondences
    assert (ours[found.fixed_index] == theirs[found.moving_index]).all()
    assert error(match, pair) < 2.0


def test_probreg_is_told_of_no_classes() -> None:
    for method in PROBREG:
        with pytest.raises(InputError, match=f"'{method}' cannot use spot classes. Use one of"):
            check_given(method, {"spot classes": True})
    for method in OWN:
        check_given(method, {"spot classes": True})


@pytest.mark.parametrize("method", ["ransac", "cpd"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_given_pose_may_be_off_by_two_spacings(method: str, ndim: int) -> None:
    pair = make_pair(600, ndim=ndim, rotation=0.0, shift=20.0)
    away = np.array([15.0, -12.0, 13.0])[:ndim]
    pose = Affine(rotation(ndim, 1.0), 20.0 + away)
    match = match_spots(pair.fixed, pair.moving, method=method, initial=pose)
    assert match.is_ok
    assert error(match, pair) < 0.35


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_consensus_is_found_among_many_candidates(ndim: int) -> None:
    pair = make_pair(600, ndim=ndim, rotation=0.0, shift=0.0, bump=0.0, overlap=0.5)
    problem = inner_problem(pair)
    turn, middle = rotation(ndim, 2.0), problem.fixed.mean(axis=0)
    true = Affine(turn, middle - turn @ middle + np.array([1.4, -1.1, 0.9])[:ndim])
    problem = replace(problem, moving=true(problem.moving))
    found = consensus(problem, Affine.identity(ndim))
    assert np.abs(found(problem.fixed) - true(problem.fixed)).max() < 0.2


@pytest.mark.parametrize("reach", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_assignment_equals_the_dense_one(ndim: int, reach: float) -> None:
    rng = np.random.default_rng(0)
    ours = scatter(700, ndim) / 12
    theirs = np.concatenate(
        [ours[:400] + rng.normal(0, 0.3, (400, ndim)), scatter(200, ndim, 1) / 12]
    )
    rows, columns = assign(ours, theirs, reach)
    assert len(np.unique(rows)) == len(rows)
    assert len(np.unique(columns)) == len(columns)
    cost = np.minimum(cdist(ours, theirs, "sqeuclidean"), reach**2)
    plain = cost[linear_sum_assignment(cost)].sum() + reach**2 * (len(ours) - len(theirs))
    found = ((ours[rows] - theirs[columns]) ** 2).sum() + reach**2 * (len(ours) - len(rows))
    assert found == pytest.approx(plain, rel=1e-9)


def test_the_assignment_of_nothing() -> None:
    points = scatter(20, 3)
    for rows in assign(points, points + 1e3, 1.0):
        assert len(rows) == 0
    for rows in assign(points, points, 1.0):
        np.testing.assert_array_equal(rows, np.arange(20))


@pytest.mark.parametrize("guess", [0.02, 0.3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_deviation_is_that_of_the_right_pairs(ndim: int, guess: float) -> None:
    rng = np.random.default_rng(1)
    right = rng.normal(0, 0.05, (400, ndim))
    wrong = rng.uniform(-1, 1, (2000, ndim))
    wrong = wrong[np.linalg.norm(wrong, axis=1) < 1][:300]
    assert deviation(np.concatenate([right, wrong]), guess) == pytest.approx(0.05, rel=0.12)
    assert deviation(right, guess) == pytest.approx(0.05, rel=0.06)
    assert 0 < deviation(np.zeros((10, ndim)), guess) < 1e-5


def test_pairs_settle_where_mutual_neighbours_are() -> None:
    """What an engine of pairs returns is fitted to the pairs that its own map brings together."""
    pair = make_pair(500)
    problem = inner_problem(pair)
    found = engine("icp")(problem, true_pose(pair))
    ours, theirs = mutual_neighbours(
        problem.moved(found.map, problem.fitted_rows), problem.targets, 3 * 3**0.5 * found.sigma
    )
    assert (pair.partner[problem.fitted_rows[ours]] == theirs).mean() > 0.98
    assert found.w == pytest.approx(1 - len(ours) / len(problem.fitted), abs=0.02)
    assert found.kriging is not None


def test_shelves_change_nothing_where_all_are_alike() -> None:
    pair = make_pair(300)
    problem = inner_problem(pair)
    alone = np.zeros(300, dtype=np.int64)
    again = replace(problem, shelves=Shelves.of((alone, alone), problem.fixed, problem.moving))
    for method in OWN:
        maps = [engine(method)(p, true_pose(pair)).map for p in (problem, again)]
        np.testing.assert_array_equal(maps[0](problem.fixed), maps[1](problem.fixed))


@pytest.mark.parametrize("method", PROBREG)
@pytest.mark.parametrize(
    "source",
    [
        "raise OSError('libusb-1.0.so.0: cannot open shared object file')",
        "raise RuntimeError('no display')",
        "import no_such_package_of_anyone",
        "x = 1 /",
    ],
)
def test_an_extra_that_does_not_import_is_an_error_with_a_remedy(
    method: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probreg").mkdir()
    (tmp_path / "probreg" / "__init__.py").write_text(source + "\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "probreg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    points = scatter(100, 3)
    for attempt in (
        lambda: match_spots(points, points, method=method),
        lambda: check_installed(method),
    ):
        with pytest.raises(InputError, match=r"(?s)pip install 'tilereg\[probreg\]'.*='cpd'"):
            attempt()


def test_a_run_says_what_is_missing_before_it_reads_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "probreg", None)
    monkeypatch.setitem(sys.modules, "probreg.cpd", None)
    places = [str(tmp_path / name) for name in ("no.zarr", "none.zarr", "run")]
    done = CliRunner().invoke(app, ["register", *places, "--set", "match.method=probreg"])
    assert done.exit_code == 1
    assert "pip install 'tilereg[probreg]'" in done.stderr
    for method in OWN:
        check_installed(method)


def test_no_engine_imports_an_extra_before_it_is_asked_for() -> None:
    for method in OWN:
        engine(method)
    engine("probreg")
    if find_spec("probreg") is None:
        assert "probreg" not in sys.modules
    assert "open3d" not in sys.modules or find_spec("probreg") is not None


def test_the_settings_know_every_engine() -> None:
    assert get_args(MatchSettings.model_fields["method"].annotation) == METHODS
    for method in METHODS:
        settings = Settings().with_overrides([f"match.method={method}"])
        assert settings.match.method == method
        assert f"'{method}'" in match_spots.__doc__


def test_the_command_line_takes_an_engine(tmp_path: Path) -> None:
    pair = make_pair(300)
    tables = []
    for name, cloud in (("fixed", pair.fixed), ("moving", pair.moving)):
        table = tmp_path / f"{name}.csv"
        np.savetxt(table, cloud, delimiter=",", header="z,y,x", comments="")
        tables.append(str(table))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["match", *tables, str(out), "--set", "match.method=icp"])
    assert done.exit_code == 0, done.stderr
    assert (out / "transform.ome.zarr").exists()
    wrong = CliRunner().invoke(app, ["match", *tables, str(out), "--set", "match.method=magic"])
    assert wrong.exit_code != 0
    assert "'transport'" in wrong.stderr
