"""Settings: round trips, overrides, and what is said about wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from tilereg.config import DetectSettings, InitialSettings, Settings
from tilereg.errors import SettingsError
from tilereg.fields.model import FieldModel

EVERYTHING = [
    "input.channel=2",
    "input.fixed_channel=DAPI",
    'input.moving_channel="a \\"quoted\\" \\\\ name\\twith é and \\u007f"',
    "input.level=1",
    "detect.sigma=[0.8, 0.4, 0.4]",
    "detect.threshold=1e-7",
    "detect.polarity=dark",
    "detect.max_spots=1_000_000",
    "spots.columns=z=centroid-0,y=centroid-1,x=centroid-2",
    "spots.moving_columns=class=gene",
    "spots.unit=voxel",
    "spots.fixed=a.csv",
    "spots.moving=s3://bucket/b.parquet",
    "spots.spacing=[0.4, 0.2, 0.2]",
    "spots.moving_spacing=0.3",
    "match.landmarks=pairs.csv",
    "match.region=[[0, 0, 0], [3.5, 4, 5]]",
    "match.moving_region=[[-1, 0], [3.5, 4]]",
    "match.mask=mask.ome.zarr",
    "match.moving_mask=image.ome.zarr/labels/tissue",
    "initial.method=file",
    "initial.file=s3://bucket/a b.ome.zarr",
    "initial.max_rotation=180",
    "match.w=0.4",
    "match.beta=30.5",
    "field.model=thin-plate",
    "field.spacing=25",
    "field.smoothing=0",
    "warp.order=3",
    "warp.fill_value=-1.5e300",
    'warp.channels=[0, "Cy5"]',
    "output.chunks=[64, 128, 128]",
    "output.shards=[256, 512, 512]",
    "output.levels=4",
    "output.compression=none",
    "compute.workers=4",
    "compute.memory=4 GiB",
]


@pytest.mark.parametrize("settings", [Settings(), Settings().with_overrides(EVERYTHING)])
def test_toml_round_trip(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")
    assert Settings.from_toml(path) == settings
    tables = tomllib.loads(settings.to_toml())
    assert tables["warp"]["order"] == settings.warp.order


def test_overrides_reach_their_settings() -> None:
    settings = Settings().with_overrides(EVERYTHING)
    assert settings.input.fixed_channel == "DAPI"
    assert settings.input.moving_channel == 'a "quoted" \\ name\twith é and \x7f'
    assert settings.detect.sigma == (0.8, 0.4, 0.4)
    assert settings.warp.channels == (0, "Cy5")
    assert settings.compute.memory == "4 GiB"
    assert settings.match.held_out == Settings().match.held_out
    # An empty value brings the default back; the original is untouched.
    assert settings.with_overrides(["detect.sigma=", "warp.order="]).detect.sigma is None
    assert settings.detect.sigma == (0.8, 0.4, 0.4)


def test_text_that_looks_like_toml() -> None:
    settings = Settings().with_overrides(["input.channel=2026-01-01", "input.fixed_channel=a#b"])
    assert settings.input.channel == "2026-01-01"
    assert settings.input.fixed_channel == "a#b"
    assert Settings().with_overrides(['input.channel="405"']).input.channel == "405"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().detect.sigma = 1.0  # type: ignore[misc]


def test_none_is_only_ever_a_default() -> None:
    # TOML has no null: a setting may be None only where leaving it out means the same.
    for info in Settings.describe():
        section, key = info.name.split(".")
        field = type(getattr(Settings(), section)).model_fields[key]
        admits_none = type(None) in get_args(field.annotation)
        assert admits_none == (field.default is None), info.name


def test_every_setting_is_described() -> None:
    rows = Settings.describe()
    assert len({row.name for row in rows}) == len(rows) == 52
    for row in rows:
        assert row.description.endswith("."), row.name
        assert row.rule, row.name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[detct]\nsigma = 1", ["[detct] is unknown", "[detect]", "compute"]),
        ("[detect]\nsgma = 1", ["detect.sgma is unknown", "detect.sigma", "max_spots"]),
        ("[detect]\nbeta = 1", ["detect.beta is unknown", "match.beta"]),
        ("[detect]\nsigma = -1", ["detect.sigma = -1", "number > 0 (um)"]),
        ("[detect]\nsigma = [1.0]", ["detect.sigma = [1.0]"]),
        ("[detect]\nsigma = [1.0, 'a']", ['detect.sigma = [1.0, "a"]']),
        ("[detect]\nsigma = nan", ["detect.sigma = nan"]),
        ("[detect]\nsigma = true", ["detect.sigma = true"]),
        ("[warp]\nfill_value = inf", ["warp.fill_value = inf", "finite"]),
        ("[warp]\norder = 2", ["warp.order = 2", "3 (cubic)"]),
        ("[warp]\norder = '1'", ['warp.order = "1"']),
        ("[match]\nw = 1.0", ["match.w = 1.0", "between 0 and 1"]),
        ("[input]\nchannel = true", ["input.channel = true"]),
        ("[spots]\ncolumns = 'z=a,q=b'", ["columns 'z=a,q=b'", "'q=b' is not understood"]),
        ("[spots]\ncolumns = 'x=a'", ["they name x alone"]),
        ("[match]\nregion = [[0, 0], [1, 0]]", ["match.region = [[0, 0], [1, 0]]", "upper corner"]),
        ("[match]\nregion = [0, 1]", ["match.region = [0, 1]"]),
        ("[match]\nregion = [[0, 0], [1, 1, 1]]", ["match.region"]),
        ("[spots]\nunit = 'px'", ["spots.unit", "'um' or 'voxel'"]),
        ("[input]\nchannel = 1979-05-27", ["input.channel = datetime"]),
        ("[compute]\nmemory = 'much'", ["compute.memory", "'4GB'"]),
        ("[initial]\nmethod = 'file'", ["initial.method", "needs a file"]),
        ("[output]\nversion = '0.4'\nshards = [8, 8]", ["output.shards", "0.5"]),
        ("[match]\nbeta = 5.0\n[field]\nmodel = 'kriging'", ["match.beta = 5.0", "contradict"]),
        ("[field]\nmodel = 'spline'", ['field.model = "spline"', "'polynomial'"]),
        ("[field]\nkernel = 'cubic'", ["field.kernel", "'auto'", "field.model", "'radial'"]),
        ("[field]\nmodel = 'kriging'\nsmoothing = 1", ["field.smoothing", "'thin-plate' and"]),
        ("[field]\nmodel = 'coherent'\nspacing = 9", ["field.spacing", "'coherent'"]),
        ("[field]\nmodel = 'radial'\nspacing = 9", ["field.spacing", "of 'thin-plate'"]),
        ("[field]\nmodel = 'polynomial'\nsmoothing = 1", ["field.smoothing", "'polynomial'"]),
        ("[field]\nmodel = 'polynomial'\ndegree = 4", ["field.degree = 4", "1, 2 or 3"]),
        ("[field]\nmodel = 'radial'\nbeta = 9", ["field.beta", "field.kernel", "'gaussian'"]),
        (
            "[field]\nmodel = 'radial'\nkernel = 'quintic'\ndegree = 1",
            ["field.degree = 1", "'quintic'", "2 or more"],
        ),
        ("[field]\nmodel = 'radial'\ncontrol_points = 9", ["field.control_points", "25"]),
        ("[compute]\nworkers = 2\nscheduler = 'dask'", ["workers and compute.scheduler"]),
        ("detect = 3", ["detect is not a table", "[detect]"]),
        ("[detect]\nself = 3", ["detect.self is unknown"]),
        ("[detect", ["not valid TOML"]),
    ],
)
def test_wrong_settings_are_explained(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        Settings.from_toml(path)
    message = str(caught.value)
    assert "wrong.toml" in message
    assert "\n" not in message.replace(text, "")
    for word in words:
        assert word in message


def test_which_field_is_fitted_to_the_pairs() -> None:
    def fitted(*overrides: str) -> FieldModel | None:
        return Settings().with_overrides(overrides).field.fitted

    assert fitted() is None
    assert fitted("field.model=coherent") is None
    assert fitted("field.model=kriging") is None
    assert fitted("field.model=polynomial") == FieldModel(name="polynomial")
    plate = fitted("field.smoothing=2", "field.spacing=9")
    assert plate == FieldModel(name="thin-plate", smoothing=2.0, spacing=9.0)
    settings = {
        "model": "radial", "kernel": "gaussian", "beta": 9.0, "degree": 2, "smoothing": 0.5,
        "control_points": 100, "tolerance": 0.1,
    }  # fmt: skip
    radial = fitted(*(f"field.{key}={value}" for key, value in settings.items()))
    del settings["model"]
    assert radial == FieldModel(name="radial", **settings)  # type: ignore[arg-type]


def test_all_offenders_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().with_overrides(
            ["detect.sigma=-1", "detect.threshold=x", "wrap.order=1", "nonsense", "match.w="]
        )
    message = str(caught.value)
    assert message.startswith("Invalid settings in --set")
    for word in ("detect.sigma = -1", 'detect.threshold = "x"', "[wrap]", "[warp]", "'nonsense'"):
        assert word in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        Settings.from_toml(tmp_path / "nowhere.toml")


def test_settings_made_in_python_are_checked_alike() -> None:
    with pytest.raises(SettingsError, match=r"detect\.sigma = -1"):
        DetectSettings(sigma=-1)
    with pytest.raises(SettingsError, match=r"detect\.sigma = -1.*match\.seed"):
        Settings(detect={"sigma": -1}, match={"seed": -1})
    given = Settings(initial=InitialSettings(method="file", file="a.ome.zarr"))
    assert given.initial.file == "a.ome.zarr"
