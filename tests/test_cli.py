from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import tilereg
from tilereg import __version__
from tilereg.cli import app
from tilereg.config import Settings
from tilereg.errors import OutputError
from tilereg.grid import Grid
from tilereg.io.ome_zarr import create_image, open_image
from tilereg.metrics import FieldError

DATA = Path(os.environ.get("TILEREG_DATA", Path(__file__).parents[2] / "shared/data"))
COMMANDS = ("demo", "info", "register", "detect", "match", "warp", "points", "settings")

QC = {
    "status": "ok",
    "matches": {"pairs": 7, "share_matched": 0.7, "share_chance": float("nan")},
    "stages": [{"name": "warp", "seconds": 1.0, "peak_memory_bytes": 1000}],
}
ERROR = FieldError(
    count=5, median=1.0, p95=2.0, rms=1.0, max=3.0,
    median_voxels=0.5, p95_voxels=1.0, rms_voxels=0.5, max_voxels=1.5,
)  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def error_line(result: Result, code: int = 1) -> str:
    """Return the one line on stderr of a command that failed."""
    assert result.exit_code == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@dataclass
class Call:
    """What a fake was called with, and what it answers."""

    answer: Any
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.arguments, self.options = arguments, options
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    @property
    def settings(self) -> Settings:
        assert self.options is not None
        found = self.options["settings"]
        assert isinstance(found, Settings)
        return found


Fake = Callable[[str, Any], Call]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that puts a fake in the place of ``module.function``."""

    def put(name: str, answer: Any) -> Call:
        module_name, _, function = name.partition(".")
        call = Call(answer)
        full = f"tilereg.{module_name}"
        module = sys.modules.get(full)
        if not isinstance(module, SimpleNamespace):
            module = SimpleNamespace()
            monkeypatch.setitem(sys.modules, full, module)
            monkeypatch.setattr(tilereg, module_name, module, raising=False)
        setattr(module, function, call)
        return call

    return put


@pytest.fixture
def register(fake: Fake) -> Call:
    return fake("pipeline.register", SimpleNamespace(output="OUT", qc=QC))


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Return an image of two channels and two levels."""
    grid = Grid(shape=(4, 20, 32), spacing=(2.0, 0.5, 0.25), origin=(1.0, 0.0, 0.0))
    path = tmp_path / "image[1].ome.zarr"
    writer = create_image(
        path,
        grid=grid,
        dtype=np.uint16,
        axes=("c", "z", "y", "x"),
        channels=("DAPI", "beads"),
        num_times=1,
        chunks=(4, 16, 16),
        levels=2,
        name="image",
    )
    writer.finish()
    return str(path)


def test_every_command_explains_itself() -> None:
    for command in COMMANDS:
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"tilereg {command}" in result.stdout
        assert result.stderr == ""
        assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_no_arguments_show_the_commands_in_full() -> None:
    result = run()
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2].split("\n")[1:]
    assert tuple(line.split()[0] for line in listed if line) == COMMANDS
    assert "..." not in result.stdout.partition("Options:")[2]


def test_version() -> None:
    assert run("--version").stdout == f"tilereg {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["regster"], "Did you mean 'register'? See 'tilereg --help'."),
        (["info"], "Missing argument 'IMAGE'. See 'tilereg info --help'."),
        (["info", "a", "--level", "1"], "No such option: --level"),
        (["warp", "a", "b", "c"], "Missing option '--like'"),
        (["register", "a", "b", "c", "--workers", "0"], "'--workers'"),
        (["register", "a", "b", "c", "--resume", "--overwrite"], "--resume and --overwrite"),
        (["register", "a", "b", "c", "--workers", "2", "--scheduler", "x"], "Only one place"),
        (["register", "a", "b", "c", "--memory", "4GB"], "Give --workers"),
        (["settings", "detec"], "Section 'detec' is unknown. Known: input, detect"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], words: str) -> None:
    line = error_line(run(*arguments), code=2)
    assert line.startswith("tilereg: error: ")
    assert words in line


def test_errors_are_one_line(fake: Fake) -> None:
    fake("steps.detect", OutputError("'a'\n  exists  already."))
    assert error_line(run("detect", "i", "a")) == "tilereg: error: 'a' exists already."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left", "/a/0.0"), "No space left: '/a/0.0'. Make room"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "Permission denied: '/a'."),
        (TimeoutError(), "TimeoutError."),
        (MemoryError("Unable to allocate 6 GiB."), "Out of memory. Unable to allocate 6 GiB. Use"),
        (ValueError("odd.\n"), "Unexpected ValueError: odd. This is a defect of tilereg. Run the"),
        (ZeroDivisionError(), "Unexpected ZeroDivisionError. This is a defect"),
    ],
)
def test_what_slips_through_is_one_line(fake: Fake, error: Exception, words: str) -> None:
    fake("steps.detect", error)
    line = error_line(run("detect", "i", "a"))
    assert line.startswith(f"tilereg: error: {words}")


def test_notes_of_an_unexpected_error_are_told(fake: Fake) -> None:
    error = KeyError("k")
    error.add_note("This happened in task 3.")
    fake("steps.detect", error)
    assert "'k'. This happened in task 3. This is a defect" in error_line(run("detect", "i", "a"))


@pytest.mark.parametrize("error", [OutputError("It exists."), ValueError("odd")])
def test_debug_shows_the_traceback(fake: Fake, error: Exception) -> None:
    fake("steps.detect", error)
    result = run("detect", "i", "a", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "test_cli.py" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tilereg: error: ")


def test_interrupt_says_how_to_go_on(fake: Fake) -> None:
    fake("pipeline.register", KeyboardInterrupt())
    line = error_line(run("register", "a", "b", "c"), code=130)
    assert line.startswith("tilereg: interrupted. ")
    assert "with --resume to go on" in line
    line = error_line(run("register", "a", "b", "c", "--overwrite"), code=130)
    assert "with --resume in place of --overwrite to go on" in line
    fake("steps.detect", KeyboardInterrupt())
    assert "--resume" not in error_line(run("detect", "i", "a"), code=130)


def test_options_go_before_set_before_config(register: Call, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text("[input]\nlevel = 1\ntime = 1\n[detect]\nsigma = 1.0\n[match]\nseed = 1\n")
    result = run(
        *("register", "F", "M", "OUT", "--config", str(config)),
        *("--set", "input.level=2", "--set", "detect.sigma=2.0", "--level", "3"),
    )
    assert result.exit_code == 0, result.stderr
    settings = register.settings
    assert (settings.input.level, settings.detect.sigma, settings.match.seed) == (3, 2.0, 1)
    assert settings.input.time == 1
    assert register.arguments == ("F", "M", "OUT")


def test_an_option_also_goes_before_what_would_overrule_it(register: Call, tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('[input]\nfixed_channel = 4\n[compute]\nscheduler = "tcp://nowhere:1"\n')
    fixed = ("register", "F", "M", "OUT", "--config", str(config))
    # No scheduler is at that address: the error shows that workers take its place.
    line = error_line(run(*fixed, "--workers", "2", "--memory", "900TB", "--channel", "beads"))
    assert "2 workers of" in line
    run(*fixed, "--set", "compute.scheduler=", "--channel", "beads")
    assert register.settings.input.fixed_channel is None
    assert register.settings.input.channel == "beads"


def test_channels_are_numbers_or_names(register: Call) -> None:
    run("register", "a", "b", "c", "--fixed-channel", "2", "--moving-channel", "DAPI 2")
    found = register.settings.input
    assert (found.channel, found.fixed_channel, found.moving_channel) == (None, 2, "DAPI 2")


def test_initial_is_a_setting(register: Call) -> None:
    run("register", "a", "b", "c", "--initial", "007")
    assert register.settings.initial.method == "file"
    assert register.settings.initial.file == "007"


def test_wrong_settings_name_their_place(register: Call, tmp_path: Path) -> None:
    line = error_line(run("register", "a", "b", "c", "--set", "detect.sigma=-1"))
    assert "Invalid settings in --set: detect.sigma = -1 is not allowed." in line
    line = error_line(run("register", "a", "b", "c", "--workers", "1", "--memory", "much"))
    assert "Invalid settings in the options: compute.memory" in line
    line = error_line(run("register", "a", "b", "c", "--config", str(tmp_path / "none.toml")))
    assert "Cannot read the settings" in line
    assert register.options is None


def test_register_passes_on_what_is_asked(register: Call) -> None:
    result = run("register", "F", "M", "OUT", "--resume", "--quiet")
    assert result.exit_code == 0
    assert register.options is not None
    assert register.options["resume"] is True
    assert register.options["overwrite"] is False
    assert register.options["client"] is None
    assert result.stderr == ""
    assert "7 pairs; 70.0 % of the fixed spots" in result.stdout
    assert "peak memory" in result.stdout


def test_register_as_json(register: Call) -> None:
    result = run("register", "F", "M", "OUT", "--json")
    found = json.loads(result.stdout)
    assert found["output"] == "OUT"
    assert found["matches"] == {"pairs": 7, "share_matched": 0.7, "share_chance": None}


def test_dry_run_only_plans(register: Call, fake: Fake) -> None:
    plan = SimpleNamespace(rows=lambda: [("tasks", "12")], as_dict=lambda: {"tasks": 12})
    call = fake("pipeline.plan", plan)
    assert run("register", "F", "M", "OUT", "--dry-run", "--level", "1").stdout == "tasks  12\n"
    assert call.arguments == ("F", "M", "OUT")
    assert call.settings.input.level == 1
    result = run("register", "F", "M", "OUT", "--dry-run", "--json", "--workers", "2", "--resume")
    assert call.options is not None
    assert (call.options["overwrite"], call.options["resume"]) == (False, True)
    assert json.loads(result.stdout) == {"tasks": 12}
    assert register.options is None


def test_demo(fake: Fake) -> None:
    run_found = SimpleNamespace(qc=QC, output="tilereg-demo/run")
    result = SimpleNamespace(run=run_found, error=ERROR, initial_error=ERROR)
    call = fake("demo.demo", result)
    out = run("demo", "--seed", "3").stdout
    assert call.arguments == ("tilereg-demo",)
    assert call.options is not None
    assert call.options["seed"] == 3
    assert "median 0.5 voxels = 1 um, 95 % below 1 voxels = 2 um, at 5 points" in out
    assert "tilereg-demo/run" in out
    found = json.loads(run("demo", "elsewhere", "--json").stdout)
    assert found["output"] == "elsewhere"
    assert found["error"]["p95"] == 2.0


def test_detect(fake: Fake) -> None:
    call = fake("steps.detect", range(1234))
    assert "1,234" in run("detect", "IMAGE", "SPOTS", "--channel", "1", "--level", "2").stdout
    assert call.arguments == ("IMAGE", "SPOTS")
    assert (call.settings.input.channel, call.settings.input.level) == (1, 2)
    found = json.loads(run("detect", "IMAGE", "SPOTS", "--json").stdout)
    assert found == {"output": "SPOTS", "count": 1234}


def test_match(fake: Fake) -> None:
    found = SimpleNamespace(
        correspondences=range(50),
        share_matched=0.5,
        share_chance=0.01,
        status="ok",
        message="m",
        model="field",
        warnings=("Mind the gap.",),
    )
    call = fake("steps.match", found)
    out = run("match", "F", "M", "OUT", "--initial", "start").stdout
    assert "50 pairs; 50.0 % of the fixed spots lie at a moving one (by chance: 1.0 %)" in out
    assert call.settings.initial.file == "start"
    assert json.loads(run("match", "F", "M", "OUT", "--json").stdout)["pairs"] == 50


def test_points(fake: Fake) -> None:
    call = fake("steps.points", SimpleNamespace(count=1000, num_failed=3))
    result = run("points", "P", "T", "OUT", "--inverse", "--overwrite")
    assert call.options == {"inverse": True, "overwrite": True}
    assert "1,000" in result.stdout
    assert "3 have no inverse" in result.stdout
    found = json.loads(run("points", "P", "T", "OUT", "--json").stdout)
    assert found == {"output": "OUT", "count": 1000, "num_failed": 3}


def test_warp(fake: Fake, image: str) -> None:
    call = fake("steps.warp", open_image(image))
    result = run("warp", "I", "T", "OUT", "--like", "F", "--set", "warp.order=0")
    assert call.arguments == ("I", "T", "OUT")
    assert call.options is not None
    assert call.options["like"] == "F"
    assert call.settings.warp.order == 0
    assert "4x20x32" in result.stdout


def test_info(image: str) -> None:
    result = run("info", image)
    assert result.exit_code == 0
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if line)
    assert lines["image"] == image
    assert lines["axes"] == "c, z, y, x"
    assert lines["shape"] == "2x4x20x32"
    assert lines["channels"] == "0: DAPI, 1: beads"
    assert lines["extent"] == "8 x 10 x 8 um"
    assert lines["0"].split("  ")[0] == "4x20x32"
    assert "1" in lines
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_info_as_json(image: str) -> None:
    found = json.loads(run("info", image, "--json").stdout)
    assert found["location"] == image
    assert found["dtype"] == "uint16"
    assert found["channels"] == ["DAPI", "beads"]
    assert found["levels"][0]["spacing_um"] == [2.0, 0.5, 0.25]
    assert found["levels"][0]["chunks"] == [4, 16, 16]
    assert len(found["levels"]) == 2


def test_info_on_nothing(tmp_path: Path) -> None:
    assert "Check the path" in error_line(run("info", str(tmp_path / "none")))


def real_images() -> list[Any]:
    """Return images that other software wrote."""
    names = (
        "easifish/round1.ome.zarr",
        "merfish/round0.ome.zarr",
        "omezarr/neuroglancer/simple_0.4",
        "omezarr/ngff_challenge/2d.zarr",
        "omezarr/ngio/v05/test_image_tczyx.zarr",
    )
    return [pytest.param(DATA / name, id=name) for name in names]


@pytest.mark.parametrize("path", real_images())
def test_info_on_images_of_others(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"No data: set TILEREG_DATA to a folder that holds {path.name}.")
    result = run("info", str(path))
    assert result.exit_code == 0, result.stderr
    found = json.loads(run("info", str(path), "--json").stdout)
    num_channels = dict(zip(found["axes"], found["shape"], strict=True)).get("c", 1)
    assert len(found["channels"]) == num_channels
    assert all(note in result.stdout for note in found["notes"])


def test_settings_are_all_listed() -> None:
    out = run("settings").stdout
    assert all(f"{info.name} = " in out for info in Settings.describe())
    assert run("settings", "warp").stdout.count(" = ") == len(Settings().warp.model_fields_set) + 3
    found = json.loads(run("settings", "--json").stdout)
    assert [info["name"] for info in found] == [info.name for info in Settings.describe()]


def test_template_is_a_settings_file(tmp_path: Path) -> None:
    text = run("settings", "--toml").stdout
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert Settings.from_toml(path) == Settings()
    # Every default that is written is read back to itself.
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    known = {info.name.partition(".")[2] for info in Settings.describe()}
    kept = [x for x in lines if x.startswith("[") or (x.partition(" = ")[0] in known and "=" in x)]
    path.write_text("\n".join(x for x in kept if not x.endswith("=")))
    assert Settings.from_toml(path) == Settings()


def test_workers_do_not_hear_an_interrupt(register: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    @contextmanager
    def connect(**place: Any) -> Iterator[str]:
        seen.append((place["workers"], place["memory"], signal.getsignal(signal.SIGINT)))
        yield "client"
        seen.append("closed")

    monkeypatch.setattr("tilereg.lazy.cluster.connect", connect)
    run("register", "F", "M", "OUT", "--workers", "2", "--memory", "1GB")
    assert seen == [(2, "1GB", signal.SIG_IGN), "closed"]
    assert register.options is not None
    assert register.options["client"] == "client"
    assert signal.getsignal(signal.SIGINT) is before


def tilereg_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tilereg", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_in_a_process_of_its_own(image: str, tmp_path: Path) -> None:
    done = tilereg_process("info", image, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "image"
    failed = tilereg_process("register", image, str(tmp_path / "none"), str(tmp_path / "out"))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("tilereg: error: ")
    assert failed.stderr.count("\n") == 1
    assert tilereg_process("info").returncode == 2


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'numba', 'scipy', 'dask', 'distributed', 'zarr', 'pyarrow', 'pydantic'}"
    code = f"import sys, tilereg.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_all_steps_from_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = run("demo", str(folder), "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["error"]["p95_voxels"] < 1 < found["error_before"]["p95_voxels"]
    assert result.stderr == ""
    assert "--overwrite" in error_line(run("demo", str(folder)))

    rounds = [str(folder / f"round{number}.ome.zarr") for number in (1, 2)]
    spots = [str(tmp_path / f"spots{number}.parquet") for number in (1, 2)]
    for image, table in zip(rounds, spots, strict=True):
        assert run("detect", image, table).exit_code == 0
    matched = run("match", *spots, str(tmp_path / "match"))
    assert matched.exit_code == 0, matched.stderr
    warped = run(
        "warp", rounds[1], str(tmp_path / "match"), str(tmp_path / "warped"), "--like", rounds[0]
    )
    assert warped.exit_code == 0, warped.stderr
    assert open_image(tmp_path / "warped").grid == open_image(rounds[0]).grid

    table = tmp_path / "points.csv"
    table.write_text("name,z,y,x\na,9.0,20.0,20.0\nb,6.0,15.0,30.0\n")
    there, back = str(tmp_path / "there.csv"), tmp_path / "back.csv"
    assert run("points", str(table), str(folder / "run"), there).exit_code == 0
    assert run("points", there, str(folder / "run"), str(back), "--inverse").exit_code == 0
    before, after = (np.genfromtxt(p, delimiter=",", skip_header=1) for p in (table, back))
    np.testing.assert_allclose(after[:, 1:], before[:, 1:], atol=1e-6)

    resumed = run("register", *rounds, str(folder / "run"), "--resume", "--json")
    assert json.loads(resumed.stdout)["status"] == "ok"
    assert error_line(run("register", *rounds, str(folder / "run")))
