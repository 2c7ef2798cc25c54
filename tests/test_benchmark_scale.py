"""The scale and peers benchmarks: what they measure is there, and is what was asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import peers, scale
from benchmarks.bigstream_settings import SETTINGS
from benchmarks.contenders import run_with_tilereg
from benchmarks.peer_pairs import EASIFISH, Outcome, SyntheticPair, TissuePair, write_pair
from benchmarks.processes import CommandCost, CommandError, run_command
from benchmarks.results_files import Ledger, Options
from tilereg.grid import Grid
from tilereg.io.ome_zarr import create_image, open_image
from tilereg.synthetic import BENCHMARK_FIELDS, benchmark_pair
from tilereg.windows import iter_windows

VOLUME = ((70, 150, 140), 120)

HOLD = """
import subprocess, sys, time
import numpy as np
held = np.ones({size}, np.uint8)
if {children}:
    subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[1]], check=True)
time.sleep(0.4)
"""


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands run with one thread a BLAS: where the cores are busy, waiting threads spin."""
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


def outcome(pair: SyntheticPair | TissuePair, mapped: NDArray[Any], image: NDArray[Any]) -> Outcome:
    """Return what a tool might have found."""
    return Outcome(
        cost=cost(),
        mapped=mapped,
        image=image,
        inside=np.ones(pair.grids[0].shape, bool),
        transform_bytes=1,
        details={},
    )


def cost() -> CommandCost:
    """Return the cost of nothing in particular."""
    return CommandCost(
        seconds=2.0,
        cpu_seconds=3.0,
        peak_memory_bytes=5_000_000,
        memory_kind="PSS",
        peak_rss_bytes=6_000_000,
        processes_at_peak=[5_000_000],
        read_bytes=7,
        written_bytes=8,
        interval=0.1,
        timeline=[(0.0, 1)],
    )


def test_the_memory_of_all_processes_is_added_up() -> None:
    size = 120_000_000
    child = HOLD.format(size=size, children=False)
    found = run_command([sys.executable, "-c", HOLD.format(size=size, children=True), child])
    assert 2 * size < found.peak_memory_bytes < 3 * size
    assert len(found.processes_at_peak) == 2
    assert sum(found.processes_at_peak) == found.peak_memory_bytes
    assert found.peak_rss_bytes >= found.peak_memory_bytes
    assert max(held for _, held in found.timeline) == found.peak_memory_bytes
    assert found.seconds > 0.4
    assert found.cpu_seconds > 0


def test_a_command_is_bound_to_cores() -> None:
    wait = "import os, subprocess, sys, time; time.sleep(1)"
    count = "assert len(os.sched_getaffinity(0)) == 1, 'free'"
    child = f"sys.exit(subprocess.call([sys.executable, '-c', {f'import os; {count}'!r}]))"
    run_command([sys.executable, "-c", f"{wait}; {count}; {child}"], cores=1)


def test_what_a_command_writes_is_counted(tmp_path: Path) -> None:
    program = "import time; open('x', 'wb').write(bytes(3_000_000)); time.sleep(0.3)"
    found = run_command([sys.executable, "-c", program], folder=tmp_path)
    assert 3_000_000 <= found.written_bytes < 3_500_000


def test_a_failed_command_says_why() -> None:
    with pytest.raises(CommandError, match="it broke"):
        run_command([sys.executable, "-c", "raise SystemExit('it broke')"])


def test_a_late_command_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    writer = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {writer!r}])"
    with pytest.raises(CommandError, match="Stopped after"):
        run_command([sys.executable, "-c", program], time_limit=0.5)
    with pytest.raises(CommandError, match="Stopped after"):
        run_command([sys.executable, "-c", "import time; time.sleep(9)"], time_limit=2.0)
    assert not (tmp_path / "late").exists()


def test_pairs_are_written_as_they_are(tmp_path: Path) -> None:
    pair = benchmark_pair(VOLUME, scale.FIELD, scale.SEED)
    scale.write_pair(pair, tmp_path)
    for name, expected in (("reference", pair.reference), ("moving", pair.moving)):
        image = open_image(tmp_path / f"{name}.ome.zarr")
        reader = image.reader()
        assert image.grid == pair.grid
        for unit in iter_windows(reader.shape, (33, 64, 100)):
            np.testing.assert_array_equal(reader.read(unit.window), expected[unit.window.slices])
    assert not np.array_equal(pair.reference, pair.moving)


@pytest.mark.usefixtures("one_thread")
def test_a_small_volume_from_store_to_store(tmp_path: Path) -> None:
    options = Options(small=True, output=tmp_path)
    found = scale.run(options)
    (run,) = found["runs"]
    assert run["errors"]["spots"]["median"] < 0.1
    assert run["errors"]["grid_inside"]["count"] > 100
    assert run["errors"]["grid_inside"]["median"] < 0.2
    assert run["ncc_before"] + 0.2 < run["ncc_after"] <= 1
    assert run["is_within_limit"]
    assert 100_000_000 < run["register"]["peak_memory_bytes"] < found["limit_bytes"]
    # The command, two workers and the process that looks after shared memory.
    assert len(run["register"]["processes_at_peak"]) >= 3
    assert [s["name"] for s in run["stages"]][:3] == ["detect fixed", "detect moving", "match"]
    text = scale.tables(json.loads(json.dumps(found)))
    assert all(word in text for word in ("`small`", "detect fixed", "GB", "warp"))
    scale.figures(found, tmp_path)
    assert (tmp_path / "scale_memory.png").stat().st_size > 5000
    # A second start measures nothing again.
    assert scale.run(options)["runs"] == json.loads(json.dumps(found["runs"]))


def test_every_preset_and_the_real_pair_have_settings_of_bigstream(tmp_path: Path) -> None:
    for name in (*BENCHMARK_FIELDS, EASIFISH):
        assert any(name in settings.inputs for settings in SETTINGS.values())
    for settings in SETTINGS.values():
        assert json.loads(json.dumps(settings.job())).keys() >= {"global_steps", "local_steps"}
    (tmp_path / EASIFISH).mkdir()
    named = [pair.key for pair in peers.pairs(Options(data=tmp_path))]
    assert len(named) == len(set(named)) == peers.SEEDS * len(BENCHMARK_FIELDS) + 1
    assert len(peers.pairs(Options())) == len(named) - 1


@pytest.mark.usefixtures("one_thread")
def test_tilereg_registers_what_its_peer_gets(tmp_path: Path) -> None:
    (pair,) = peers.pairs(Options(small=True))
    assert isinstance(pair, SyntheticPair)
    write_pair(pair, tmp_path)
    found = run_with_tilereg(pair, tmp_path, "tilereg", None)
    judged = pair.judge(found)
    assert judged["errors"]["spots"]["median"] < 0.1
    assert judged["ncc_overlap"] > judged["image"]["ncc"] > 0.3
    assert found.cost.peak_memory_bytes > 100_000_000
    assert found.details["seconds"].keys() >= {"detect fixed", "match", "warp"}


def test_a_map_is_judged_in_voxels_of_the_world() -> None:
    (pair,) = peers.pairs(Options(small=True))
    assert isinstance(pair, SyntheticPair)
    true = pair.grids[0].to_world(pair.truth.true)
    judged = pair.judge(outcome(pair, true + [0, 3, 4], pair.images[0]))
    assert judged["errors"]["spots"]["median"] == pytest.approx(5)
    assert judged["image"]["ncc"] == pytest.approx(1)
    assert judged["ncc_overlap"] == pytest.approx(1)


def test_the_real_pair_is_judged_where_there_is_tissue(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 99, size=(2, 24, 20, 20)).astype(np.uint16)
    for number, image in enumerate(images, 1):
        grid = Grid(shape=image.shape, spacing=(1.7, 1.8, 1.8))
        writer = create_image(tmp_path / f"round{number}.ome.zarr", grid=grid, dtype=image.dtype)
        for unit in writer.units():
            writer.write(unit.window, image[unit.window.slices])
        writer.finish()
    pair = TissuePair(folder=tmp_path)
    # Right below the 21st plane alone.
    guess = np.concatenate([images[1][:21], images[0][21:]])
    judged = pair.judge(outcome(pair, pair.points, guess))
    assert judged["ncc_overlap"] == pytest.approx(1)
    assert abs(judged["ncc_before"]) < 0.1


def test_a_peer_that_cannot_run_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(n for n, s in SETTINGS.items() if scale.FIELD in s.inputs)

    def late(*_: Any) -> Outcome:
        raise CommandError("Stopped after 1 s: bigstream")

    def quick(pair: SyntheticPair, *_: Any) -> Outcome:
        return outcome(pair, pair.points, pair.images[1])

    monkeypatch.setattr(peers, "run_with_bigstream", late)
    monkeypatch.setattr(peers, "run_with_tilereg", quick)
    found = peers.run(Options(small=True, methods=("tilereg", name), output=tmp_path))
    assert [row["status"] for row in found["runs"]] == ["ok", "failed"]
    assert len(list(Ledger(tmp_path / "cache" / "peers.jsonl").rows())) == 2
    text = peers.tables(json.loads(json.dumps(found)))
    assert "Stopped after 1 s" in text
    assert f"`{name}`" in text
