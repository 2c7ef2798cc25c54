"""Connecting to Dask: what is asked for, and what is said when it is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dask
import pytest
from distributed import Client

from tilereg.errors import InputError, ResourceError
from tilereg.lazy.cluster import connect

# Nothing listens on port 1.
NOBODY = "tcp://127.0.0.1:1"


def test_nothing_asked_is_this_process() -> None:
    with dask.config.set({"scheduler-address": NOBODY}), connect() as client:
        assert client is None


def test_workers_are_processes_with_their_memory() -> None:
    with connect(workers=1, memory="300MB") as client:
        assert client is not None
        info = client.scheduler_info()["workers"]
        assert [worker["memory_limit"] for worker in info.values()] == [300_000_000]
        assert client.submit(os.getpid).result() != os.getpid()
    assert client.status == "closed"


def test_a_scheduler_that_runs(client: Client, tmp_path: Path) -> None:
    address = client.scheduler.address
    file = tmp_path / "scheduler.json"
    client.write_scheduler_file(str(file))
    with dask.config.set({"scheduler-address": address}):
        for where in ({"scheduler": address}, {"scheduler": "dask"}, {"scheduler_file": file}):
            with connect(**where) as mine:
                assert mine is not None
                assert mine.scheduler.address == address
                assert mine.submit(sum, [1, 2]).result() == 3
    # Leaving did not take the cluster along.
    assert client.submit(sum, [3, 4]).result() == 7


def test_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"No scheduler answers at 'tcp://127.0.0.1:1'.*Check"):
        connect(scheduler=NOBODY, timeout=0.5).__enter__()
    file = tmp_path / "old.json"
    file.write_text(json.dumps({"address": NOBODY}))
    with pytest.raises(ResourceError, match="No scheduler answers"):
        connect(scheduler_file=file, timeout=0.5).__enter__()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"workers": 0}, "workers 0"),
        ({"workers": 1, "memory": "much"}, "memory 'much'"),
        ({"workers": 1, "memory": "0GB"}, "above zero"),
        ({"workers": 1, "scheduler": NOBODY}, "scheduler and workers"),
        ({"scheduler": "carrier-pigeon://loft"}, "carrier-pigeon"),
        ({"scheduler": "dask"}, "DASK_SCHEDULER_ADDRESS"),
        ({"scheduler_file": "nowhere.json"}, r"nowhere\.json.*--scheduler-file"),
    ],
)
def test_wrong_arguments_are_explained(arguments: dict[str, object], words: str) -> None:
    with (
        dask.config.set({"scheduler-address": None}),
        pytest.raises(InputError, match=words),
    ):
        connect(**arguments).__enter__()


def test_file_that_no_scheduler_wrote(tmp_path: Path) -> None:
    for text in ("{}", "[]", "address"):
        (tmp_path / "file.json").write_text(text)
        with pytest.raises(InputError, match="is not a scheduler file"):
            connect(scheduler_file=tmp_path / "file.json").__enter__()


def test_workers_beyond_the_machine_are_refused() -> None:
    with pytest.raises(ResourceError, match="more than the"):
        connect(workers=2, memory="1000TB").__enter__()
