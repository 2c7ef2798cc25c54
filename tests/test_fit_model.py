"""One interface to all field models: the same theorems for each."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

import tilereg
from tilereg import Affine, Correspondences, FieldModel, InputError, ModelFit, fit_model
from tilereg.config import FieldSettings
from tilereg.field import mean_spacing
from tilereg.fields.basis import monomials
from tilereg.fields.judged import fit_judged
from tilereg.fields.model import KERNELS, MODELS, PARAMETERS
from tilereg.fields.pairs import Pairs
from tilereg.fields.radial import fit_radial

Floats = NDArray[np.float64]
EACH = [
    *(FieldModel(name=name) for name in MODELS),
    FieldModel(name="radial", kernel="gaussian"),
    FieldModel(name="radial", control_points=60),
]
IDS = [" ".join(map(str, (m.name, *m.given.values()))) for m in EACH]


def scattered(count: int, ndim: int = 3, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).uniform(0, 60, (count, ndim))


def bent(points: Floats, noise: float = 0.0) -> Floats:
    jitter = np.random.default_rng(9).normal(0, noise, points.shape) if noise else 0.0
    return points * 1.02 + 5 + np.sin(points[:, ::-1] / 20) + jitter


def error_of(fit: ModelFit, points: Floats) -> float:
    return float(np.sqrt(((fit.transform(points) - bent(points)) ** 2).sum(axis=1).mean()))


@pytest.mark.parametrize("model", EACH, ids=IDS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_smooth_map_is_found(model: FieldModel, ndim: int) -> None:
    fixed = scattered(200, ndim)
    fit = fit_model(fixed, bent(fixed, 0.2), model=model)
    # The noise of a pair is 0.2 an axis; the field is an average over many.
    assert error_of(fit, fixed) < 0.75 * 0.2 * ndim**0.5
    assert fit.transform.field is not None
    assert fit.weight.shape == (200,)
    assert 0.7 < fit.weight.mean() <= 1
    assert fit.losses
    assert json.loads(json.dumps([fit.parameters, fit.losses], allow_nan=False))


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_affine_maps_are_reproduced(model: FieldModel) -> None:
    fixed = scattered(100)
    affine = Affine(np.eye(3) + 0.1 * np.random.default_rng(1).normal(size=(3, 3)), [5.0, 6.0, 7.0])
    fit = fit_model(fixed, affine(fixed), model=model)
    queries = scattered(200, seed=2) * 1.5 - 15
    np.testing.assert_allclose(fit.transform(queries), affine(queries), atol=2e-3)


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_the_unit_changes_nothing_but_units(model: FieldModel) -> None:
    fixed = scattered(150)
    moving = bent(fixed, 0.1)
    fit = fit_model(fixed, moving, model=model)
    nano = fit_model(fixed * 1e3, moving * 1e3, model=model)
    np.testing.assert_allclose(nano.transform(fixed * 1e3) / 1e3, fit.transform(fixed), atol=1e-4)
    np.testing.assert_allclose(nano.weight, fit.weight, atol=1e-4)
    losses = np.array(list(nano.losses.values())) / list(fit.losses.values())
    np.testing.assert_allclose(losses, 1e3, rtol=1e-3)
    if fit.lattice_error:
        # That of a polynomial is rounding.
        assert model.name == "polynomial" or nano.lattice_error == pytest.approx(
            1e3 * fit.lattice_error, rel=1e-3
        )


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_the_order_of_the_pairs_changes_nothing(model: FieldModel) -> None:
    fixed = scattered(150)
    moving = bent(fixed, 0.1)
    weight = np.random.default_rng(3).uniform(0.5, 1, 150)
    order = np.random.default_rng(4).permutation(150)
    fit = fit_model(fixed, moving, model=model, weight=weight)
    again = fit_model(fixed[order], moving[order], model=model, weight=weight[order])
    np.testing.assert_array_equal(again.transform(fixed), fit.transform(fixed))
    np.testing.assert_array_equal(again.weight, fit.weight[order])


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_turned_pairs_give_the_turned_map(model: FieldModel) -> None:
    fixed = scattered(150)
    moving = bent(fixed, 0.1)
    turn = Rotation.from_euler("xyz", [20, 40, 60], degrees=True)
    fit = fit_model(fixed, moving, model=model)
    turned = fit_model(turn.apply(fixed), turn.apply(moving), model=model)
    gap = turned.transform(turn.apply(fixed)) - turn.apply(fit.transform(fixed))
    # But for the lattices, whose axes stay where they are.
    limit = 0.1 if fit.lattice_error in (None, 0.0) else 2 * fit.lattice_error + 1e-6
    assert np.linalg.norm(gap, axis=1).max() < limit


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_a_weight_of_zero_leaves_a_pair_out(model: FieldModel) -> None:
    fixed = scattered(100)
    moving = bent(fixed, 0.1)
    weight = np.ones(100)
    weight[[7, 60]] = 0.0
    spoiled = moving.copy()
    spoiled[[7, 60]] += 100.0
    left = weight > 0
    fit = fit_model(fixed, spoiled, model=model, weight=weight)
    plain = fit_model(fixed[left], moving[left], model=model)
    box = fixed[left].min(axis=0), fixed[left].max(axis=0)
    inside = np.clip(fixed, *box)
    np.testing.assert_array_equal(fit.transform(inside), plain.transform(inside))
    assert (fit.weight[~left] == 0).all()
    np.testing.assert_array_equal(fit.weight[left], plain.weight)


@pytest.mark.parametrize("name", MODELS)
def test_wrong_pairs_hurt_little(name: str) -> None:
    fixed = scattered(300)
    moving = bent(fixed, 0.1)
    wrong = np.random.default_rng(5).permutation(300)[:20]
    spoiled = moving.copy()
    spoiled[wrong] += np.random.default_rng(6).normal(0, 15, (20, 3))
    clean = error_of(fit_model(fixed, moving, model=name), fixed)
    fit = fit_model(fixed, spoiled, model=name)
    assert error_of(fit, fixed) < 1.4 * clean + 0.02
    assert fit.weight[wrong].mean() < 0.05
    if name != "kriging":
        trusting = fit_model(fixed, spoiled, model=FieldModel(name=name, robust=False))
        assert error_of(trusting, fixed) > 3 * error_of(fit, fixed)


def test_wrong_ones_of_many_pairs_are_left_out() -> None:
    # Above the number of which kriging itself looks for them.
    fixed = scattered(2500)
    moving = bent(fixed, 0.1)
    wrong = np.random.default_rng(5).permutation(2500)[:120]
    moving[wrong] += np.random.default_rng(6).normal(0, 15, (120, 3))
    fit = fit_model(fixed, moving, model="kriging")
    assert error_of(fit, fixed) < 0.1
    assert fit.weight[wrong].mean() < 0.02
    assert fit.weight.mean() > 0.94


@pytest.mark.parametrize("name", MODELS)
def test_hard_layouts(name: str) -> None:
    rng = np.random.default_rng(7)
    flat = np.column_stack([np.full(120, 3.0), scattered(120, 2)])
    twice = np.repeat(scattered(80), 2, axis=0)
    far = scattered(120) + 1e5
    clustered = (rng.uniform(0, 500, (8, 1, 3)) + rng.normal(0, 5, (8, 20, 3))).reshape(-1, 3)
    for fixed in (flat, twice, far, clustered):
        moving = fixed + 0.3 * np.sin(fixed[:, ::-1] / 40)
        fit = fit_model(fixed, moving, model=name)
        missed = np.linalg.norm(fit.transform(fixed) - moving, axis=1)
        assert np.median(missed) < 0.15


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_radial_field_is_held_within_the_bound(kernel: str) -> None:
    fixed = scattered(150)
    moving = bent(fixed, 0.2)
    model = FieldModel(name="radial", kernel=kernel)
    box = fixed.min(axis=0), fixed.max(axis=0)
    exact = fit_radial(Pairs.of(fixed, moving, robust=True), kernel=kernel)
    queries = np.random.default_rng(8).uniform(*box, (20_000, 3))
    for tolerance in (None, 0.03):
        fit = fit_model(fixed, moving, model=replace(model, tolerance=tolerance))
        assert fit.lattice_error is not None
        gap = np.linalg.norm(fit.transform(queries) - exact.map(queries), axis=1)
        assert gap.max() <= fit.lattice_error
        assert fit.lattice_error <= (tolerance or 0.01 * mean_spacing(fixed))
        assert fit.parameters["control_points"] == 150
    assert fit.parameters["smoothing"] == exact.smoothing


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_polynomial_is_held_exactly(degree: int) -> None:
    fixed = scattered(150)
    design = monomials(fixed / 60, degree)
    moving = fixed + design @ np.random.default_rng(9).normal(size=(design.shape[1], 3))
    fit = fit_model(fixed, moving, model=FieldModel(name="polynomial", degree=degree))
    np.testing.assert_allclose(fit.transform(fixed), moving, atol=1e-9)
    assert fit.losses == {}


@pytest.mark.parametrize("model", EACH, ids=IDS)
def test_a_domain_is_where_the_field_varies(model: FieldModel) -> None:
    fixed = scattered(150)
    low, high = np.full(3, -100.0), np.full(3, 200.0)
    fit = fit_model(fixed, bent(fixed), model=model, domain=(low, high))
    assert fit.transform.field is not None
    first, last = fit.transform.field.domain
    if model.name == "polynomial":
        # It would grow too fast beyond the pairs.
        low, high = fixed.min(axis=0), fixed.max(axis=0)
        np.testing.assert_allclose([first, last], [low, high])
    assert (first <= low + 1e-9).all()
    assert (last >= high - 1e-9).all()
    corners = np.stack([low, high])
    assert np.abs(fit.transform(corners) - corners).max() < 60


def test_what_was_chosen_fits_again() -> None:
    fixed = scattered(150)
    moving = bent(fixed, 0.1)
    for model in EACH:
        fit = fit_model(fixed, moving, model=model)
        again = fit_model(fixed, moving, model=fit.model)
        np.testing.assert_allclose(again.transform(fixed), fit.transform(fixed), atol=1e-9)
        if model.name != "kriging":
            assert again.losses == {}


def make_correspondences(fixed: Floats, moving: Floats, held: NDArray[np.bool_]) -> Correspondences:
    rows = np.arange(len(fixed))
    return Correspondences(
        fixed=fixed,
        moving=moving,
        fixed_index=rows,
        moving_index=rows,
        weight=np.ones(len(fixed)),
        residual=np.zeros(len(fixed)),
        held_out=held,
        tile=np.zeros(len(fixed), dtype=np.int64),
    )


@pytest.mark.parametrize("name", MODELS)
def test_held_out_pairs_judge_a_map_that_has_not_seen_them(name: str) -> None:
    fixed = scattered(200)
    moving = bent(fixed, 0.1)
    held = np.arange(200) % 10 == 0
    spoiled = moving.copy()
    spoiled[held] += np.random.default_rng(1).normal(0, 3, (20, 3))
    box = fixed.min(axis=0), fixed.max(axis=0)
    model = FieldModel(name=name)
    found = fit_judged(make_correspondences(fixed, spoiled, held), model, box)
    clean = fit_judged(make_correspondences(fixed, moving, held), model, box)
    np.testing.assert_array_equal(found.judge(fixed), clean.judge(fixed))
    for judged, pairs in ((found, spoiled), (clean, moving)):
        for rows, map_ in ((held, judged.judge), (~held, judged.fit.transform)):
            residual = np.linalg.norm(map_(fixed[rows]) - pairs[rows], axis=1)
            np.testing.assert_allclose(judged.pairs.residual[rows], residual)
    told = clean.description
    assert told["field"] == name
    assert told["held_out_rms_um"][name] < 0.3 < found.description["held_out_rms_um"][name]
    assert json.dumps(told, allow_nan=False)
    alone = fit_judged(make_correspondences(fixed, moving, np.zeros(200, dtype=bool)), model, box)
    assert alone.description["held_out_rms_um"] == {}
    np.testing.assert_array_equal(alone.judge(fixed), alone.fit.transform(fixed))


@pytest.mark.parametrize("name", MODELS)
def test_refuses_bad_pairs(name: str) -> None:
    fixed = scattered(40)
    moving = bent(fixed)
    with pytest.raises(InputError, match="At least"):
        fit_model(fixed[:3], moving[:3], model=name)
    with pytest.raises(InputError, match=r"moving points are not finite.*row 4"):
        fit_model(fixed, np.where(np.arange(40)[:, None] == 4, np.nan, moving), model=name)
    with pytest.raises(InputError, match="as many of either"):
        fit_model(fixed, moving[:-1], model=name)
    for weight in (np.ones(39), -np.ones(40), np.full(40, np.nan)):
        with pytest.raises(InputError, match="Invalid weights"):
            fit_model(fixed, moving, model=name, weight=weight)
    with pytest.raises(InputError, match="no pair has a weight"):
        fit_model(fixed, moving, model=name, weight=np.zeros(40))
    with pytest.raises(InputError, match="Invalid domain"):
        fit_model(fixed, moving, model=name, domain=(np.ones(3), np.zeros(3)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "spline"}, "Known models: thin-plate, kriging, radial, polynomial"),
        ({"name": "radial", "kernel": "cone"}, "Known kernels"),
        ({"name": "kriging", "smoothing": 1.0}, "parameter of 'thin-plate' and 'radial'"),
        ({"name": "thin-plate", "kernel": "cubic"}, "parameter of 'radial'"),
        ({"name": "radial", "spacing": 1.0}, "parameter of 'thin-plate'"),
        ({"name": "radial", "beta": 1.0}, "kernel 'gaussian', not of 'thin_plate_spline'"),
        ({"name": "radial", "kernel": "quintic", "degree": 1}, "must be 2 or more"),
        ({"name": "kriging", "robust": False}, "robust=False"),
    ],
)
def test_refuses_parameters_without_use(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        FieldModel(**arguments)  # type: ignore[arg-type]


def test_a_field_too_rough_for_a_lattice_is_refused() -> None:
    fixed = scattered(200)
    rough = FieldModel(name="radial", kernel="linear", smoothing=0.0, tolerance=1e-3)
    with pytest.raises(InputError, match="Give a tolerance above"):
        fit_model(fixed, bent(fixed, 1.0), model=rough)


def test_names_are_public_and_the_settings_know_them() -> None:
    for name in ("FieldModel", "ModelFit", "farthest_points", "fit_model"):
        assert name in tilereg.__all__
        assert getattr(tilereg, name).__name__ == name
    fields = FieldSettings.model_fields
    assert set(get_args(fields["model"].annotation)) == {*MODELS, "auto", "coherent"}
    kernels = get_args(get_args(fields["kernel"].annotation)[0])
    assert set(kernels) == set(KERNELS)
    assert set(PARAMETERS) | {"model"} == set(fields)
    assert set(PARAMETERS) == set().union(*MODELS.values())
