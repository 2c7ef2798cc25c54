"""Run methods over pairs: one process a method, time limits, results kept as they come."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import Case, Cost, Detections, Truth, describe_detections
from benchmarks.judge import judge_image, judge_map
from benchmarks.methods import METHODS
from benchmarks.results_files import Ledger, number, say
from benchmarks.single_thread import ONE_THREAD
from benchmarks.worker import WARM_UP, Job, Reply, serve
from tilereg.synthetic import BenchmarkPair

START_LIMIT = 300.0
"""Seconds that a process may take to start and warm up."""

Keep = Callable[[Case, str, Reply, "Prepared"], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run."""

    work: Sequence[tuple[Case, tuple[str, ...]]]
    """Pairs, and the methods that register each."""
    ledger: Ledger
    """Where results are kept; what is in it is not run again."""
    time_limit: float = 900.0
    """Seconds that a method may take for one pair."""
    with_images: bool = True
    """Whether registered images are made and judged."""
    noise: float | None = None
    """Voxels: methods get the true spots with this noise instead of detecting any."""
    keep: Keep | None = None
    """Called with every reply, for pictures."""


def run_plan(plan: Plan) -> list[dict[str, Any]]:
    """Run what is not in the ledger yet; return all rows of the plan, in its order."""
    done = {(row["case"], row["method"]): row for row in plan.ledger.rows()}
    # Pairs that several axes share are run once.
    wanted = {(case.key, method) for case, methods in plan.work for method in methods}
    num_open = len(wanted - done.keys())
    say(f"{len(wanted)} runs, {len(wanted) - num_open} of them are there already.")
    if num_open and plan.noise is None:
        Detections.of(WARM_UP.make())  # So that compilation is no part of the first detection.
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tilereg-bench-")))
        processes = _Processes(stack)
        for case, methods in plan.work:
            left = [m for m in methods if (case.key, m) not in done]
            if not left:
                continue
            prepared = _prepare(case, left, plan, folder)
            for method in left:
                row = _run_one(method, prepared, processes, plan)
                done[case.key, method] = plan.ledger.add(row)
                num_open -= 1
                say(f"[{num_open:4d} to go] {describe(row)}")
    return [done[case.key, method] for case, methods in plan.work for method in methods]


def describe(row: dict[str, Any]) -> str:
    """Say in one line what came out of a run."""
    errors = row.get("errors") or {}
    spots = errors.get("spots") or {}
    return (
        f"{row['method']:17s} {row['case']}: {row['status']} "
        f"{number(row['total_seconds'])} s, error {number(spots.get('median'))} / "
        f"{number(spots.get('p95'))} voxel {row['reason']}"
    ).rstrip()


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A pair that is ready to be registered."""

    case: Case
    pair: BenchmarkPair
    detections: Detections
    truth: Truth
    images: tuple[Path, Path] | None
    found: dict[str, Any]
    """What was detected."""


def _prepare(case: Case, methods: Sequence[str], plan: Plan, folder: Path) -> Prepared:
    """Compute the images, the spots and the truth of a pair."""
    pair = case.make()
    paths = None
    if plan.with_images or any(METHODS[m].needs == "images" for m in methods):
        paths = folder / "reference.npy", folder / "moving.npy"
        for path, image in zip(paths, (pair.reference, pair.moving), strict=True):
            np.save(path, image)
    if plan.noise is None:
        detections = Detections.of(pair)
    else:
        detections = Detections.without_images(pair, plan.noise)
    return Prepared(
        case=case,
        pair=pair,
        detections=detections,
        truth=Truth.of(pair),
        images=paths,
        found=describe_detections(pair, detections),
    )


def _run_one(method: str, prepared: Prepared, processes: _Processes, plan: Plan) -> dict[str, Any]:
    """Let a method's process do one pair, and judge what comes back."""
    needs_images = plan.with_images or METHODS[method].needs == "images"
    job = Job(
        case=prepared.case,
        images=prepared.images if needs_images else None,
        detections=prepared.detections,
        points=prepared.truth.points,
        wants_image=plan.with_images,
    )
    load = os.getloadavg()[0]
    reply = processes.ask(method, job, plan.time_limit)
    row = _row(method, prepared, reply, load)
    if reply.status == "failed" or reply.predicted is None:
        return row
    row["errors"] = judge_map(prepared.truth, reply.predicted)
    if reply.image is not None:
        pair = prepared.pair
        row["image"] = judge_image(pair.reference, reply.image, pair.moving)
    if plan.keep is not None:
        plan.keep(prepared.case, method, reply, prepared)
    return row


def _row(method: str, prepared: Prepared, reply: Reply, load: float) -> dict[str, Any]:
    """Return what is known of a run before it is judged."""
    case = prepared.case
    is_charged = METHODS[method].needs == "spots"
    detection = prepared.detections.cost
    # What was stopped or broke off has no cost that could be compared.
    has_cost = reply.status not in ("failed", "unavailable")
    charged = detection if is_charged else Cost(seconds=0.0, cpu_seconds=0.0)
    return {
        "case": case.key,
        "method": method,
        "field": case.field,
        "seed": case.seed,
        "status": reply.status,
        "reason": reply.reason,
        "seconds": reply.seconds if has_cost else None,
        "cpu_seconds": reply.cpu_seconds if has_cost else None,
        "warp_seconds": reply.warp_seconds,
        "detect_seconds": charged.seconds,
        "detect_cpu_seconds": charged.cpu_seconds,
        "total_seconds": reply.seconds + charged.seconds if has_cost else None,
        "total_cpu_seconds": reply.cpu_seconds + charged.cpu_seconds if has_cost else None,
        "memory_bytes": reply.memory_bytes,
        "load_before": load,
        "errors": None,
        "image": None,
        "details": reply.details or {},
        "detections": prepared.found,
        "true_fold_share": prepared.truth.fold_share,
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what is started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Processes:
    """The processes of the methods; each is started when it is first asked."""

    stack: ExitStack
    running: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    unavailable: dict[str, Reply] = field(default_factory=dict)

    def ask(self, method: str, job: Job, limit: float) -> Reply:
        """Send a job and wait for the reply; a process that is late is stopped."""
        if method not in self.running and method not in self.unavailable:
            self._start(method)
        if method in self.unavailable:
            return self.unavailable[method]
        connection = self.running[method][1]
        connection.send(job)
        return self._receive(method, limit)

    def _start(self, method: str) -> None:
        """Start and warm up a process."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, method), daemon=True)
        with _environment(ONE_THREAD):
            process.start()
        theirs.close()
        self.running[method] = (process, ours)
        if len(self.running) == 1:
            self.stack.callback(self._stop_all)
        reply = self._receive(method, START_LIMIT)
        if reply.status == "unavailable" or method not in self.running:
            self._stop(method)
            self.unavailable[method] = reply

    def _receive(self, method: str, limit: float) -> Reply:
        """Wait for a reply."""
        start = time.perf_counter()
        connection = self.running[method][1]
        try:
            if connection.poll(limit):
                reply: Reply = connection.recv()
                return reply
            reason = f"Stopped after {limit:.0f} s."
        except (EOFError, ConnectionResetError):
            reason = "The process died; perhaps it ran out of memory."
        self._stop(method)
        return Reply(status="failed", reason=reason, seconds=time.perf_counter() - start)

    def _stop(self, method: str) -> None:
        """End a process."""
        if method not in self.running:
            return
        process, connection = self.running.pop(method)
        connection.close()
        process.join(0.2)
        if process.is_alive():
            process.kill()
        process.join()

    def _stop_all(self) -> None:
        """End all processes."""
        for _, connection in self.running.values():
            try:
                connection.send(None)
            except OSError:
                continue
        for method in list(self.running):
            self._stop(method)
