from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tilereg.progress import Silent
from tilereg.summary import format_seconds, format_size, run_rows, stage_table
from tilereg.terminal import Bars, Lines, open_progress, print_json, print_rows, print_table, say

QC: dict[str, Any] = {
    "status": "ok",
    "assumed": ["Axis 'z' has no unit.", "Axis 'z' has no unit."],
    "spots": {"fixed": 12345, "moving": 11002, "fixed_sigma_um": 3.1, "moving_sigma_um": 2.94},
    "matches": {"pairs": 5432, "share_matched": 0.44, "share_chance": 0.0004, "status": "ok"},
    "residual": {
        "held_out": {
            "median_um": 0.57,
            "p95_um": 2.2,
            "median_voxel": 0.31,
            "p95_voxel": 1.2,
            "count": 271,
        },
        "floor_um": 0.1,
    },
    "ncc": {"before": 0.312, "after": 0.871},
    "field": {"fold_share": 0.0, "max_displacement_um": 123.4},
    "stages": [
        {"name": "detect fixed", "seconds": 12.3, "peak_memory_bytes": 1.5e9},
        {"name": "warp", "seconds": 125.0, "peak_memory_bytes": None},
    ],
}


class Clock:
    """A clock that goes on by `step` seconds a look."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def terminal() -> tuple[Console, io.StringIO]:
    """Return a terminal of 80 columns and what is written to it."""
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=80, color_system=None), text


def test_lines_come_at_most_once_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(Clock(10.0)).stage("detect fixed", 48) as stage:
        for _ in range(48):
            stage.advance()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "detect fixed: 0/48"
    assert lines[1] == "detect fixed: 5/48"
    assert lines[-1] == "detect fixed: 48/48"
    assert len(lines) == 11


def test_lines_of_a_quick_stage_are_two(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(Clock(0.0)).stage("warp", 1000) as stage:
        for _ in range(1000):
            stage.advance()
    assert capsys.readouterr().err == "warp: 0/1000\nwarp: 1000/1000\n"


def test_lines_without_a_number_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    for total in (None, 0):
        with Lines(Clock(10.0)).stage("match", total) as stage:
            stage.advance()
    assert capsys.readouterr().err == "match ...\nmatch: done\n" * 2


def test_a_stage_that_fails_is_not_told_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    console, text = terminal()
    for progress in (Lines(), Bars(console)):
        with pytest.raises(ZeroDivisionError), progress.stage("warp", 3):
            raise ZeroDivisionError
    assert capsys.readouterr().err == "warp: 0/3\n"
    assert text.getvalue() == ""


def test_bars_leave_one_line_a_stage() -> None:
    console, text = terminal()
    with Bars(console) as progress:
        with progress.stage("detect fixed", 3000) as stage:
            stage.advance(1000)
            stage.advance(2000)
        progress.note("a [bold]note[/bold] with /a/path/")
        with progress.stage("match") as stage:
            stage.advance()
    lines = [line.rstrip() for line in text.getvalue().replace("\r", "\n").splitlines()]
    assert [line.split()[:3] for line in lines if "3,000/3,000" in line and "left" not in line]
    assert any(line.endswith("a [bold]note[/bold] with /a/path/") for line in lines)
    assert any(line.split()[-3:-1] == ["done", "0.0"] for line in lines)


def test_progress_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress() as progress:
        assert isinstance(progress, Lines)
    with open_progress(quiet=True) as progress:
        assert isinstance(progress, Silent)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: True))
    monkeypatch.setenv("TERM", "xterm")
    with open_progress() as progress:
        assert isinstance(progress, Bars)
    monkeypatch.setenv("TERM", "dumb")
    with open_progress() as progress:
        assert isinstance(progress, Lines)


def test_say_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\n  message  of\tthree lines\n")
    assert capsys.readouterr() == ("", "a message of three lines\n")


def test_json_knows_numpy_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    value = {
        "array": np.array([1.0, np.nan]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "infinite": float("inf"),
        "pair": (1, "µm"),
        2: None,
    }
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == {
        "array": [1.0, None],
        "count": 3,
        "flag": True,
        "infinite": None,
        "pair": [1, "µm"],
        "2": None,
    }


def test_rows_are_not_wrapped_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a/[path]/" + "long/" * 60
    print_rows([("output", path), ("n", "1")])
    assert capsys.readouterr().out == f"output  {path}\nn       1\n"


def test_rows_are_wrapped_at_spaces_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Console, "is_terminal", property(lambda console: True))
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "24")
    print_rows([("path", "/very" * 10), ("note", "word " * 12)])
    lines = re.sub("\x1b.*?m", "", capsys.readouterr().out).splitlines()
    assert any(line.endswith("/very" * 10) for line in lines)
    assert sum("word" in line for line in lines) == 2
    assert max(len(line) for line in lines if "word" in line) <= 40


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["stage", ">time"], [["detect [x]", "1 s"], ["warp", "100 s"]])
    assert capsys.readouterr().out == "stage        time\ndetect [x]    1 s\nwarp        100 s\n"


def test_summary_of_a_run() -> None:
    rows = dict(run_rows(QC))
    assert rows == {
        "status": "ok",
        "spots": "12,345 fixed, 11,002 moving; sigma 3.1 and 2.94 um",
        "matched": "5,432 pairs; 44.0 % of the fixed spots lie at a moving one "
        "(by chance: below 0.1 %)",
        "residual": "median 0.31 voxels = 0.57 um, 95 % below 1.20 voxels = 2.2 um "
        "(271 pairs held out of the judged fit)",
        "localisation": "explains a median of 0.1 um",
        "image NCC": "0.312 before, 0.871 after",
        "deformation": "up to 123 um, no folds",
        "assumed": "Axis 'z' has no unit.",
        "time": "2 min 17 s, peak memory 1.5 GB",
    }
    assert stage_table(QC)[1] == [["detect fixed", "12.3 s", "1.5 GB"], ["warp", "2 min 5 s", ""]]


def test_summary_says_what_is_wrong() -> None:
    qc = {
        "status": "no registration",
        "matches": {"message": "3 of 90 pairs.", "pairs": 3, "share_matched": float("nan")},
        "residual": {"held_out": {"count": 0}},
        "field": {"fold_share": 0.02},
    }
    assert dict(run_rows(qc)) == {
        "status": "no registration: 3 of 90 pairs.",
        "matched": "3 pairs",
        "residual": "unknown: no pair was held out of the fit",
        "deformation": "FOLDS in 2.0 % of the volume",
    }


def test_summary_of_nothing() -> None:
    assert run_rows({}) == [("status", "unknown")]
    assert stage_table({})[1] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (125, "2 min 5 s"),
        (3599.7, "1 h 0 min"),
        (11520, "3 h 12 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1.5e9, "1.5 GB"), (999.9e6, "1 GB"), (2e15, "2 PB")],
)
def test_sizes(size: float, text: str) -> None:
    assert format_size(size) == text
