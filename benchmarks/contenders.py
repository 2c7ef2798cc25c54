"""How tilereg and bigstream are run on a pair that is on disk, each in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import venv
from pathlib import Path

import numpy as np
import zarr

from benchmarks.bigstream_settings import SETTINGS
from benchmarks.cases import Case
from benchmarks.peer_pairs import ROUNDS, Outcome, Pair, SyntheticPair, write_pair
from benchmarks.processes import folder_bytes, run_command, run_tilereg
from benchmarks.results_files import say
from tilereg.io.ome_zarr import open_image
from tilereg.io.transforms import read_transform
from tilereg.warping import warp_array

ENVIRONMENTS = "TILEREG_BENCHMARK_ENVIRONMENTS"
"""Variable that names the folder of other tools' environments."""

PINS = (
    "bigstream==5.0.3",
    "numpy<2",
    "zarr<3",
    "numcodecs<0.16",
    "ClusterWrap==0.3.2",
    "opencv-python-headless<4.12",
    "flatten_json",
    "pydantic",
)
CORES = 2
WARM_UP = Case(volume=((24, 160, 160), 120), field="polynomial_small", seed=0)


class Unavailable(Exception):
    """The other tool cannot be installed here."""


def warm_up() -> None:
    """Let tilereg compile: its first run on a machine is no measure of it."""
    with tempfile.TemporaryDirectory(prefix="tilereg-peers-") as place:
        pair = SyntheticPair(case=WARM_UP)
        write_pair(pair, Path(place))
        run_tilereg("register", *(f"{place}/{name}" for name in ROUNDS), f"{place}/run", "--quiet")


def run_with_tilereg(pair: Pair, folder: Path, method: str, time_limit: float | None) -> Outcome:
    """Register with `tilereg register` and its defaults: threads of one process."""
    rounds = [str(folder / name) for name in ROUNDS]
    output = folder / method
    cost = run_tilereg(
        "register", *rounds, str(output), "--quiet", time_limit=time_limit, cores=CORES
    )
    transform = read_transform(output / "transform.ome.zarr")
    registered = open_image(output / "registered.ome.zarr").reader()
    qc = json.loads((output / "qc.json").read_text())
    fixed, moving = pair.grids
    ones = np.ones(moving.shape, np.uint8)
    return Outcome(
        cost=cost,
        mapped=transform(pair.points) if len(pair.points) else pair.points,
        image=registered.read(registered.grid.window),
        inside=warp_array(ones, transform, like=fixed, grid=moving, order=0) > 0,
        transform_bytes=folder_bytes(output / "transform.ome.zarr"),
        details={"seconds": {s["name"]: s["seconds"] for s in qc["stages"]}},
    )


def run_with_bigstream(pair: Pair, folder: Path, method: str, time_limit: float | None) -> Outcome:
    """Register with bigstream in its own environment, on as many single-threaded workers."""
    python = environment()
    output = folder / method
    output.mkdir()
    sides = zip(("fixed", "moving"), ROUNDS, pair.grids, strict=True)
    job = {
        **{k: {"path": str(folder / n / "0"), "spacing": g.spacing} for k, n, g in sides},
        "folder": str(output),
        "workers": CORES,
        **SETTINGS[method].job(),
    }
    place = output / "job.json"
    place.write_text(json.dumps(job))
    np.save(output / "points.npy", pair.points)
    runner = str(Path(__file__).with_name("bigstream_runner.py"))
    # Its home is the output: ClusterWrap changes Dask's configuration there.
    alone = {"HOME": str(output), "PYTHONPATH": ""}
    cost = run_command(
        [str(python), runner, "register", str(place)],
        environment=alone, folder=output, time_limit=time_limit, cores=CORES,
    )  # fmt: skip
    run_command([str(python), runner, "points", str(place)], environment=alone, folder=output)
    parts = (output / "affine.mat").stat().st_size + folder_bytes(output / "deform.zarr")
    return Outcome(
        cost=cost,
        mapped=np.load(output / "mapped.npy"),
        image=zarr.open_array(output / "registered.zarr", mode="r")[...],
        inside=np.load(output / "inside.npy"),
        transform_bytes=parts,
        details=json.loads((output / "report.json").read_text()),
    )


def environment() -> Path:
    """Return the Python of bigstream's environment; the first time, make it.

    Raises
    ------
    Unavailable
        If it cannot be installed, with the last words of pip.
    """
    given = os.environ.get(ENVIRONMENTS)
    folder = Path(given) if given else Path.home() / ".cache" / "tilereg-benchmarks"
    place = folder / "bigstream"
    python, mark = place / "bin" / "python", place / "installed.txt"
    if mark.exists() and mark.read_text().split() == list(PINS):
        return python
    say(f"Installing bigstream into '{place}'.")
    venv.create(place, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", *PINS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"pip: {' '.join(done.stderr.strip().splitlines()[-2:])}")
    mark.write_text("\n".join(PINS))
    return python
