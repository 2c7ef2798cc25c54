"""Run one function over many tasks: threads of this process or a Dask cluster.

Tasks come from an iterator that is consumed as the work goes on, so a million of them are
never held, neither here nor in a scheduler.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from tilereg.errors import InputError, ResourceError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["num_cpus", "run_tasks"]

T = TypeVar("T")
R = TypeVar("R")

# Tasks in hand for each worker thread: one that runs and one that waits, so that no thread
# idles while a finished task's successor is on its way. A cluster answers more slowly.
_PENDING_A_THREAD = 2
_PENDING_A_CLUSTER_THREAD = 4
# Submitted even while a cluster has no workers yet, so that an adaptive one sees work.
_PENDING_AT_LEAST = 32


def run_tasks(
    function: Callable[[T], R],
    tasks: Iterable[T],
    *,
    client: Client | None = None,
    num_workers: int | None = None,
    max_pending: int | None = None,
) -> Iterator[tuple[T, R]]:
    """Apply `function` to every task and yield ``(task, result)`` as the tasks finish.

    The order of the results is not fixed. The first task that fails cancels all that wait
    and raises its own error, with a note that names the task; so do an interrupt and a caller
    that stops early. Tasks that run at that moment are not cut off: threads are waited for,
    workers of a cluster end their task on their own.

    Parameters
    ----------
    function : callable
        Takes a task. With a client it is pickled once, not once a task, so that it may hold a
        transform, a reader and a writer, as in ``functools.partial(warp_unit, plan)``.
    tasks : iterable
        Consumed lazily, at most `max_pending` ahead of the results.
    client : distributed.Client, optional
        Where to run. Default: threads in this process. A task whose worker dies is tried
        again as often as distributed's ``allowed-failures`` says; an error is never retried.
    num_workers : int, optional
        Threads in this process. Default: one for each CPU that this process may use. A client
        has its own workers.
    max_pending : int, optional
        Tasks submitted and not yet yielded. Default: two a thread, four a thread of a cluster.

    Yields
    ------
    (task, result)

    Raises
    ------
    InputError
        If `num_workers` or `max_pending` is below one.
    ResourceError
        If a task took down one worker after another.

    Examples
    --------
    >>> sorted(run_tasks(abs, iter([-1, -2])))
    [(-2, 2), (-1, 1)]
    """
    for name, value in (("num_workers", num_workers), ("max_pending", max_pending)):
        if value is not None and value < 1:
            raise InputError(f"Invalid {name} {value}. It must be at least 1, or None to choose.")
    if client is None:
        return _run_on_threads(function, iter(tasks), num_workers or num_cpus(), max_pending)
    return _run_on_client(function, iter(tasks), client, max_pending)


def num_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run_on_threads(
    function: Callable[[T], R], tasks: Iterator[T], num_workers: int, max_pending: int | None
) -> Iterator[tuple[T, R]]:
    """Run on a pool of threads that never has more than `max_pending` tasks."""
    limit = max_pending or _PENDING_A_THREAD * num_workers
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="tilereg")
    pending: dict[Future[R], T] = {}
    try:
        while True:
            for task in islice(tasks, limit - len(pending)):
                pending[pool.submit(function, task)] = task
            if not pending:
                return
            # One result a turn: what the caller has not taken yet counts as pending.
            future = next(iter(wait(pending, return_when=FIRST_COMPLETED).done))
            task = pending.pop(future)
            error = future.exception()
            if error is not None:
                raise _named(error, task)
            yield task, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_on_client(
    function: Callable[[T], R], tasks: Iterator[T], client: Any, max_pending: int | None
) -> Iterator[tuple[T, R]]:
    """Run on a cluster that never has more than `max_pending` tasks of this call."""
    # Imported late: arrays in memory never need a cluster. Any: distributed has few types.
    as_completed: Any = import_module("distributed").as_completed

    # A task and not scattered data: distributed makes it again when its worker dies.
    shared = client.submit(_as_is, _Callable(function), key=_key(function, "load"), pure=False)
    pending: dict[Any, T] = {}
    finished = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    try:
        while True:
            limit = max_pending or _cluster_limit(client)
            batch = list(islice(tasks, max(0, limit - len(pending))))
            if batch:
                futures = _submit(client, shared, batch, _key(function, "run"))
                pending.update(zip(futures, batch, strict=True))
                finished.update(futures)
            if not pending:
                return
            for future, result in finished.next_batch():
                task = pending[future]
                _check(future, result, task)
                del pending[future]
                future.release()
                yield task, result
    finally:
        if pending:
            client.cancel(list(pending), reason="tilereg stopped before this task")
        # A traceback may keep this frame: what the workers hold is let go of by hand.
        for future in (*pending, shared):
            future.release()


def _submit(client: Any, shared: Any, batch: Sequence[Any], key: str) -> list[Any]:
    """Submit a batch in one message; keys are new, since a task is run for what it writes."""
    return list(client.map(_call, batch, function=shared, key=key, pure=False, retries=0))


class _Callable:
    """A function as plain data, which Dask neither calls nor looks into."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function


def _as_is(function: _Callable) -> _Callable:
    """Put the function into a worker's memory."""
    return function


def _call(task: Any, *, function: _Callable) -> Any:
    """Run one task on a worker."""
    return function.function(task)


def _key(function: Callable[[Any], Any], step: str) -> str:
    """Return a key that tells in a dashboard what runs."""
    plain = getattr(function, "func", function)
    return f"tilereg-{getattr(plain, '__name__', type(plain).__name__)}-{step}"


def _cluster_limit(client: Any) -> int:
    """Return how many tasks keep all the workers of this moment busy."""
    num_threads: int = sum(client.nthreads().values())
    return max(_PENDING_AT_LEAST, _PENDING_A_CLUSTER_THREAD * num_threads)


def _check(future: Any, result: Any, task: Any) -> None:
    """Raise the error of a future that failed, named after its task."""
    from distributed.scheduler import KilledWorker

    if future.status == "error":
        error = result[1]
        if isinstance(error, KilledWorker):
            raise ResourceError(
                f"Task {_short(task)} took down {error.allowed_failures + 1} workers, most likely "
                "because it needs more memory than they have. Use smaller chunks or give workers "
                "more memory; the workers' logs tell more."
            ) from error
        raise _named(error, task)
    if future.cancelled():
        raise ResourceError(
            f"Task {_short(task)} was cancelled by the Dask cluster, which lost its workers, was "
            "restarted or was closed. Start the run again: it goes on where it stopped."
        )


def _named(error: BaseException, task: Any) -> BaseException:
    """Return the error with a note that names its task."""
    error.add_note(f"This happened in task {_short(task)}.")
    return error


def _short(task: Any) -> str:
    """Return a task's text, cut to a line."""
    text = " ".join(repr(task).split())
    return text if len(text) <= 200 else f"{text[:197]}..."
