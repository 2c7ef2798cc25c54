"""What the defaults of matching choose, and what the best choice would have given.

Three questions, each on true spots with localisation noise, so that nothing but matching counts:

* ``w``: the share of spots without a partner that the drift starts from, against the true one.
  It is re-estimated in every iteration and cannot be held: what is tried is the start.
* ``beta``: the coherence width against the scale of the deformation, on bumps of many widths and
  on the published deformations. Giving `beta` fixes the width of the drift's field; its variance
  is still chosen from the data. The field is the drift's own, also that of the default: neither
  extended nor fitted anew by kriging.
* ``smoothing``: that of the thin-plate spline which `tilereg register` fits to the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from benchmarks.cases import Case, Detections, Truth
from benchmarks.curves import plain_log
from benchmarks.judge import judge_map
from benchmarks.results_files import Ledger, Options, number, say, table
from benchmarks.splines import fit_spline, spacing_of
from benchmarks.summaries import Row, grouped, middle
from tilereg.deformations import GaussianBumps
from tilereg.field import fit_field
from tilereg.matching import match_spots
from tilereg.metrics import inside_hull
from tilereg.synthetic import BENCHMARK_FIELDS, BenchmarkVariant

Floats = NDArray[np.float64]
Settings = tuple[float | None, ...]
Maker = Callable[[Any, int, bool], "Clouds"]

NOISE = 0.05
"""Localisation noise of every spot, voxels an axis."""
STUDIES = {
    "w": "Outlier share to start from, against the true one",
    "beta": "Coherence width against the scale of the deformation, both in mean spacings",
    "beta-presets": "Coherence width on the published deformations, in mean spacings",
    "smoothing": "Smoothing of the thin-plate spline through true pairs",
}
SEEDS = 3

_STARTS = (0.05, 0.25, 0.5, 0.75, 0.95)
_DROPPED = (0.0, 0.2, 0.4, 0.6)
_BETAS = (3.0, 4.0, 5.5, 8.0, 11.0, 16.0, 22.0, 32.0, 48.0)
_SCALES = (3.0, 6.0, 12.0, 24.0, 48.0)
_SMOOTHINGS = (0.0, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4)
_STRAIN = 0.08  # root mean square gradient of the bumps
_BOX = np.array([60.0, 300.0, 300.0])
_NUM_SPOTS = 1500


@dataclass(frozen=True, kw_only=True, eq=False)
class Clouds:
    """Two clouds, their true pairs, and what judges a map between them."""

    fixed: Floats
    moving: Floats
    pairs: NDArray[np.int64]
    """(P, 2) rows that are the same spot."""
    truth: Truth

    @property
    def outliers(self) -> float:
        """True share of moving spots without a partner."""
        return 1 - len(self.pairs) / len(self.moving)

    @property
    def oracle_error(self) -> float:
        """Median error at the spots of a smoothing spline through the true pairs."""
        map_ = fit_spline(self.fixed[self.pairs[:, 0]], self.moving[self.pairs[:, 1]])
        return float(judge_map(self.truth, map_(self.truth.points))["spots"]["median"])


@dataclass(frozen=True, kw_only=True)
class Question:
    """One pair of clouds and the settings to try on it."""

    study: str
    """'w', 'beta', 'beta-presets' or 'smoothing'."""
    place: float | str
    """True outlier share asked for, scale of the deformation, or name of a preset."""
    seed: int
    tried: Settings
    """Settings; None is the default."""
    make: Callable[[], Clouds]

    @property
    def key(self) -> str:
        """The same text for the same clouds."""
        return f"{self.study} {self.place} {self.seed}"


def run(options: Options) -> dict[str, Any]:
    """Try all settings on all clouds."""
    # Small clouds have the same names as full ones: they are kept apart.
    ledger = Ledger(options.cache / f"parameters{'-small' if options.small else ''}.jsonl")
    ledger.drop(options.redo)
    done = {(row["case"], row["method"]): row for row in ledger.rows()}
    rows = []
    for question in _questions(options):
        names = [_name(question, setting) for setting in question.tried]
        if any((question.key, name) not in done for name in names):
            clouds = question.make()
            oracle = clouds.oracle_error
            for setting, name in zip(question.tried, names, strict=True):
                if (question.key, name) not in done:
                    row = _row(question, clouds, setting, name) | {"oracle_median": oracle}
                    done[question.key, name] = ledger.add(row)
            say(f"{question.key}: done")
        rows += [done[question.key, name] for name in names]
    return {"noise_voxels": NOISE, "comparison": compare(rows), "runs": rows}


def _questions(options: Options) -> Iterator[Question]:
    """Yield what is asked, in the order of the tables."""
    small = options.small
    unknown = [name for name in options.only if name not in STUDIES]
    if unknown:
        raise SystemExit(f"Unknown study '{unknown[0]}'. Known: {', '.join(STUDIES)}.")
    starts: Settings = (None, *(_STARTS[2:3] if small else _STARTS))
    betas: Settings = (None, *(_BETAS[5:6] if small else _BETAS))
    smoothings: Settings = (None, *(_SMOOTHINGS[3:4] if small else _SMOOTHINGS))
    presets = ("polynomial_small",) if small else tuple(BENCHMARK_FIELDS)
    asked: dict[str, tuple[Sequence[float | str], Settings, Maker]] = {
        "w": (_DROPPED[1:2] if small else _DROPPED, starts, _dropped),
        "beta": (_SCALES[2:3] if small else _SCALES, betas, _bumps),
        "beta-presets": (presets, betas, _preset),
        "smoothing": (presets, smoothings, _preset),
    }
    for seed in range(options.seeds or (1 if small else SEEDS)):
        for study in options.only or asked:
            places, tried, make = asked[study]
            for place in places:
                clouds = partial(make, place, seed, small)
                yield Question(study=study, place=place, seed=seed, tried=tried, make=clouds)


def _name(question: Question, setting: float | None) -> str:
    """Name a setting."""
    return "default" if setting is None else f"{question.study.split('-')[0]}={setting:g}"


def _row(question: Question, clouds: Clouds, setting: float | None, name: str) -> Row:
    """Try one setting."""
    row: Row = {
        "case": question.key,
        "method": name,
        "study": question.study,
        "place": question.place,
        "seed": question.seed,
        "setting": setting,
        "true_outliers": clouds.outliers,
    }
    if question.study == "smoothing":
        ours, theirs = clouds.pairs.T
        fit = fit_field(clouds.fixed[ours], clouds.moving[theirs], smoothing=setting)
        row |= {"status": "ok", "chosen": fit.smoothing}
        predicted = fit.transform(clouds.truth.points)
    else:
        is_start = question.study == "w"
        width = None if is_start or setting is None else setting * spacing_of(clouds.fixed)
        match = match_spots(
            clouds.fixed,
            clouds.moving,
            field="auto" if is_start else "coherent",
            w=setting if is_start else None,
            beta=width,
        )
        chosen = match.beta / match.spacing if match.model == "field" else None
        row |= {"status": match.status, "model": match.model, "w": match.w}
        row |= {"chosen": match.w if is_start else chosen}
        predicted = match.transform(clouds.truth.points)
    return row | {"errors": judge_map(clouds.truth, predicted)}


def _dropped(share: float, seed: int, small: bool) -> Clouds:
    """Return clouds of which a share is missing on either side and as much is spurious."""
    variant = BenchmarkVariant(density=1.0 if small else 4.0, drop_out=share, spurious=share)
    volume = ((16, 128, 128), 150) if small else "medium"
    return _of_case(Case(volume=volume, field="polynomial_small", seed=seed, variant=variant))


def _preset(field: str, seed: int, small: bool) -> Clouds:
    """Return the spots of a published pair."""
    volume = ((16, 128, 128), 80) if small else "medium"
    return _of_case(Case(volume=volume, field=field, seed=seed))


def _of_case(case: Case) -> Clouds:
    """Return the true spots of a pair with localisation noise."""
    pair = case.make()
    noisy = Detections.without_images(pair, NOISE)
    return Clouds(
        fixed=noisy.fixed.positions,
        moving=noisy.moving.positions,
        pairs=pair.pairs,
        truth=Truth.of(pair),
    )


def _bumps(scale: float, seed: int, small: bool) -> Clouds:
    """Return clouds that Gaussian bumps deform, their width `scale` spacings of the spots.

    A tenth of the spots is missing on either side. The bumps fill the volume and are as strong as
    gives the displacement the same mean gradient at every scale.
    """
    rng = np.random.default_rng([seed, round(10 * scale)])
    spots = rng.uniform(0, 1, (150 if small else _NUM_SPOTS, 3)) * _BOX
    width = scale * spacing_of(spots)
    reach = _BOX + 2 * width
    count = int(np.clip(np.prod(np.maximum(reach / width, 1)), 8, 4000))
    centres = rng.uniform(0, 1, (count, 3)) * reach - width
    amplitudes = rng.normal(size=(count, 3))
    bumps = GaussianBumps(np.eye(3), np.zeros(3), centres, amplitudes, np.full(count, width))
    gradient = bumps.jacobian(spots) - np.eye(3)
    factor = _STRAIN / float(np.sqrt((gradient**2).sum(axis=(1, 2)).mean()))
    true_map = GaussianBumps(np.eye(3), np.zeros(3), centres, factor * amplitudes, bumps.widths)
    seen = rng.uniform(size=(2, len(spots))) >= 0.1
    rows = np.cumsum(seen, axis=1) - 1
    noise = rng.normal(0, NOISE, (2, *spots.shape))
    both = np.asarray(seen.all(axis=0))
    truth = Truth(
        points=spots,
        true=true_map(spots),
        is_spot=np.ones(len(spots), dtype=bool),
        is_inside=inside_hull(spots, spots[both]),
        is_shared=both,
        fold_share=float((np.linalg.det(true_map.jacobian(spots)) <= 0).mean()),
    )
    return Clouds(
        fixed=(spots + noise[0])[seen[0]],
        moving=(true_map(spots) + noise[1])[seen[1]],
        pairs=rows[:, both].T.copy(),
        truth=truth,
    )


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the default's error beside that of the best setting, medians over the seeds."""
    found = []
    for (study, place), group in grouped(rows, "study", "place").items():
        by_setting = {name: here for (name,), here in grouped(group, "method").items()}
        errors = {name: middle(r, "errors.spots.median") for name, r in by_setting.items()}
        tails = {name: middle(r, "errors.spots.p95") for name, r in by_setting.items()}
        refused = sorted({row["method"] for row in group if not _is_used(row)})
        forced = {k: v for k, v in errors.items() if k != "default" and v is not None}
        usable = {k: v for k, v in forced.items() if k not in refused} or forced
        best = min(usable, key=lambda name: usable[name])
        found.append(
            {
                "study": study,
                "place": place,
                "true_outliers": middle(group, "true_outliers"),
                "oracle_median": middle(group, "oracle_median"),
                "chosen": [row["chosen"] for row in by_setting["default"]],
                "default_ok": sum(row["status"] == "ok" for row in by_setting["default"]),
                "default_runs": len(by_setting["default"]),
                "default_median": errors["default"],
                "default_p95": tails["default"],
                "best": best,
                "best_median": errors[best],
                "best_p95": tails[best],
                "errors": errors,
                "tails": tails,
                "refused": refused,
            }
        )
    return found


def _is_used(row: Row) -> bool:
    """Whether a width took effect: one that the lattice cannot hold gives way to a shift."""
    return row["setting"] is None or row["study"][:4] != "beta" or row["model"] == "field"


def tables(figures: dict[str, Any]) -> str:
    """Return, a study, what the default chooses and gives, the best choice, and every setting."""
    parts = [
        "# Parameters of matching\n",
        f"True spots with localisation noise {figures['noise_voxels']} voxel an axis; errors at "
        "the fixed spots in voxels, median (95th percentile), medians over the seeds. `w` is the "
        "start alone: it is re-estimated in every iteration and cannot be held. `beta` fixes the "
        "width of the drift's field; its variance is still chosen from the data. Its field is "
        "the drift's own, neither extended nor fitted anew by kriging.\n",
    ]
    for study, title in STUDIES.items():
        found = [c for c in figures["comparison"] if c["study"] == study]
        if found:
            parts += [f"## {title}\n", _choices(found), _every_setting(found)]
    return "\n".join(parts)


def _choices(found: Sequence[dict[str, Any]]) -> str:
    """Return the default beside the best."""
    head = ["case", "true outliers", "default chooses", "default", "best setting", "best", "oracle"]
    lines = [
        [
            str(c["place"]),
            number(c["true_outliers"], 2),
            ", ".join(number(v, 2) for v in c["chosen"]),
            f"{number(c['default_median'])} ({number(c['default_p95'])})"
            + (c["default_ok"] < c["default_runs"])
            * f", {c['default_ok']} of {c['default_runs']} ok",
            c["best"],
            f"{number(c['best_median'])} ({number(c['best_p95'])})",
            number(c["oracle_median"]),
        ]
        for c in found
    ]
    return table(head, lines)


def _every_setting(found: Sequence[dict[str, Any]]) -> str:
    """Return the median errors, a line a case and a column a setting."""
    settings = list(found[0]["errors"])
    lines = [
        [
            str(c["place"]),
            *[number(c["errors"].get(s)) for s in settings],
        ]
        for c in found
    ]
    return table(["case", *settings], lines)


def figures(found: dict[str, Any], folder: Path) -> None:
    """Draw a figure a study: the error against the setting, the default as a dashed line."""
    for study, title in STUDIES.items():
        rows = [row for row in found["runs"] if row["study"] == study]
        if rows:
            _draw(study, title, rows, folder / f"parameters_{study}.png")


def _draw(study: str, title: str, rows: Sequence[Row], path: Path) -> None:
    """Draw a panel a case."""
    places = list(dict.fromkeys(row["place"] for row in rows))
    figure = Figure(figsize=(max(7.5, 2.9 * len(places) + 0.8), 3.9), layout="constrained")
    axes = figure.subplots(1, len(places), sharey=True, squeeze=False)[0]
    for axis, place in zip(axes, places, strict=True):
        here = [row for row in rows if row["place"] == place]
        settings = sorted({r["setting"] for r in here if r["setting"] is not None})
        default = [r for r in here if r["setting"] is None]
        for key, colour in (("median", "tab:blue"), ("p95", "tab:orange")):
            curve = [
                middle([r for r in here if r["setting"] == s], f"errors.spots.{key}")
                for s in settings
            ]
            axis.plot(range(len(settings)), curve, "o-", color=colour, markersize=4, label=key)
            level = middle(default, f"errors.spots.{key}")
            axis.axhline(level, color=colour, linestyle="--", label=f"{key}, default")
        axis.axhline(middle(here, "oracle_median"), color="grey", linestyle=":", label="oracle")
        axis.set_xticks(range(len(settings)), [f"{s:g}" for s in settings], fontsize=8, rotation=45)
        axis.xaxis.set_minor_locator(NullLocator())
        plain_log(axis)
        axis.grid(alpha=0.25)
        axis.set_title(_place_title(study, place, here), fontsize=9)
    axes[0].set_ylabel("error at the spots (voxel)")
    axes[-1].legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel({"w": "w to start from"}.get(study, study.split("-")[0]), fontsize=10)
    figure.savefig(path, dpi=110)


def _place_title(study: str, place: float | str, rows: Sequence[Row]) -> str:
    """Name a panel."""
    if study == "w":
        return f"true share {number(middle(rows, 'true_outliers'), 2)}"
    return f"scale {place:g} spacings" if study == "beta" else str(place)
