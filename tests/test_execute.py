"""Tests of running tasks on threads and on a cluster of processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from tilereg.errors import ImageError, InputError, ResourceError
from tilereg.lazy.execute import run_tasks


class Counted:
    """An iterator of integers that knows how many were taken."""

    def __init__(self, stop: int) -> None:
        self.taken = 0
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        for number in range(self.stop):
            self.taken += 1
            yield number


class PickledOnce:
    """A callable with a big array that counts how often it is pickled."""

    num_pickles = 0

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __call__(self, task: int) -> float:
        return float(self.array[task])

    def __reduce__(self) -> tuple[Any, ...]:
        PickledOnce.num_pickles += 1
        return PickledOnce, (self.array,)


def square(task: int) -> int:
    """Return the square."""
    return task * task


def fail_at(bad: int, task: int) -> int:
    """Raise at one task."""
    if task == bad:
        raise ImageError(f"Chunk {task} is damaged.")
    return task


def die_once(folder: str, task: int) -> int:
    """Take the worker down the first time that task 1 runs."""
    flag = Path(folder) / "died"
    if task == 1 and not flag.exists():
        flag.touch()
        os._exit(1)
    return task


def die(task: int) -> int:
    """Take the worker down."""
    os._exit(1)


def mark(folder: str, task: int) -> int:
    """Leave a file behind that says that the task ran; task 0 fails."""
    if task == 0:
        raise ImageError("Chunk 0 is damaged.")
    time.sleep(0.01)
    (Path(folder) / str(task)).touch()
    return task


@pytest.fixture(params=["threads", "one thread", "processes"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of run_tasks for each place that tasks run in."""
    if request.param == "processes":
        return {"client": request.getfixturevalue("client")}
    return {"num_workers": 1 if request.param == "one thread" else 3}


def test_every_task_runs_once(where: dict[str, Any]) -> None:
    results = list(run_tasks(square, range(100), **where))
    assert sorted(results) == [(i, i * i) for i in range(100)]


def test_no_task_no_result(where: dict[str, Any]) -> None:
    assert list(run_tasks(square, iter(()), **where)) == []


def test_tasks_need_not_be_hashable(where: dict[str, Any]) -> None:
    results = list(run_tasks(sum, [[1, 2], [3]], **where))
    assert sorted(results) == [([1, 2], 3), ([3], 3)]


def test_equal_tasks_all_run(where: dict[str, Any]) -> None:
    assert [r for _, r in run_tasks(square, [3] * 7, **where)] == [9] * 7


def test_tasks_are_taken_as_the_work_goes_on(where: dict[str, Any]) -> None:
    tasks = Counted(1_000_000)
    results = run_tasks(square, tasks, max_pending=8, **where)
    for done in range(1, 50):
        next(results)
        assert tasks.taken <= done + 8
    results.close()
    assert tasks.taken < 100


def test_first_error_is_raised_as_it_is(where: dict[str, Any]) -> None:
    tasks = Counted(1_000_000)
    with pytest.raises(ImageError, match="Chunk 5 is damaged") as caught:
        list(run_tasks(partial(fail_at, 5), tasks, **where))
    assert caught.value.__notes__ == ["This happened in task 5."]
    assert tasks.taken < 200


def test_error_cancels_what_waits(where: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        list(run_tasks(partial(mark, str(tmp_path)), range(30), max_pending=30, **where))
    time.sleep(0.1)
    num_files = len(list(tmp_path.iterdir()))
    time.sleep(0.2)
    assert num_files < 25
    assert len(list(tmp_path.iterdir())) == num_files


def test_error_of_the_tasks_iterator_is_raised(where: dict[str, Any]) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("no such window")

    with pytest.raises(InputError, match="no such window"):
        list(run_tasks(square, broken(), **where))


def test_interrupt_leaves_no_thread() -> None:
    results = run_tasks(square, Counted(1_000_000), num_workers=3)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not any(t.name.startswith("tilereg") for t in threading.enumerate())


def test_interrupt_leaves_no_future(client: Client) -> None:
    results = run_tasks(square, Counted(1_000_000), client=client)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while client.futures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not client.futures


def test_threads_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=10)
    results = run_tasks(lambda _: barrier.wait(), range(6), num_workers=3)
    assert len(list(results)) == 6


def test_function_is_pickled_once(client: Client) -> None:
    PickledOnce.num_pickles = 0
    function = PickledOnce(np.arange(50.0))
    results = list(run_tasks(function, range(50), client=client))
    assert sorted(results) == [(i, float(i)) for i in range(50)]
    assert PickledOnce.num_pickles <= 2  # Dask may pickle once more to name the graph.


def test_task_of_a_dead_worker_runs_again(client: Client, tmp_path: Path) -> None:
    results = list(run_tasks(partial(die_once, str(tmp_path)), range(6), client=client))
    assert sorted(results) == [(i, i) for i in range(6)]
    assert (tmp_path / "died").exists()
    client.wait_for_workers(2, timeout=30)


def test_task_that_kills_its_workers_is_named(client: Client) -> None:
    scheduler = client.cluster.scheduler
    before, scheduler.allowed_failures = scheduler.allowed_failures, 0
    try:
        with pytest.raises(ResourceError, match="Task 17 took down 1 workers"):
            list(run_tasks(die, [17], client=client))
    finally:
        scheduler.allowed_failures = before
    client.wait_for_workers(2, timeout=30)


def test_long_tasks_are_cut_in_the_note() -> None:
    with pytest.raises(TypeError, match="can't multiply") as caught:
        list(run_tasks(square, ["a\n" * 500], num_workers=1))  # type: ignore[arg-type]
    (note,) = caught.value.__notes__
    assert len(note) < 250
    assert "\n" not in note


@pytest.mark.parametrize("name", ["num_workers", "max_pending"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"Invalid {name} 0. It must be at least 1"):
        run_tasks(square, range(3), **{name: 0})  # type: ignore[arg-type]
