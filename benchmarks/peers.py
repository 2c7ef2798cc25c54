"""bigstream beside tilereg: the same input, the same cores, both from disk to disk.

bigstream lives in an environment of its own, which this benchmark makes: it needs older numpy and
zarr than tilereg. Both read the same chunks: OME-Zarr 0.4 holds plain arrays of zarr format 2,
which is what bigstream takes, with their spacings by hand.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bigstream_settings import SETTINGS
from benchmarks.cases import Case
from benchmarks.contenders import (
    CORES,
    PINS,
    Unavailable,
    run_with_bigstream,
    run_with_tilereg,
    warm_up,
)
from benchmarks.peer_pairs import EASIFISH, Pair, SyntheticPair, TissuePair, write_pair
from benchmarks.processes import CommandError
from benchmarks.results_files import Ledger, Options, number, require_data, say, table
from benchmarks.summaries import Row, grouped, in_words, middle, reasons, spread, worst
from tilereg.synthetic import BENCHMARK_FIELDS

SEEDS = 3
SMALL = ((24, 160, 160), 120)


def run(options: Options) -> dict[str, Any]:
    """Register every pair with both; what an earlier start has measured is kept."""
    ledger = Ledger(options.cache / "peers.jsonl")
    ledger.drop(options.redo)
    done = {(row["case"], row["method"]): row for row in ledger.rows()}
    methods = options.methods or ("tilereg", *SETTINGS)
    rows = []
    if not options.small:
        warm_up()
    for pair in pairs(options):
        here = [m for m in methods if m == "tilereg" or pair.input in SETTINGS[m].inputs]
        left = [m for m in here if (pair.key, m) not in done]
        with tempfile.TemporaryDirectory(prefix="tilereg-peers-") as place:
            if left:
                write_pair(pair, Path(place))
            for method in left:
                row = measure(method, pair, Path(place), options.time_limit)
                done[pair.key, method] = ledger.add(row)
                say(f"{method} {pair.key}: {row['status']} {number(row['seconds'])} s")
        rows += [done[pair.key, method] for method in here]
    return {
        "cores": CORES,
        "pins": list(PINS),
        "settings": {name: s.as_dict() for name, s in SETTINGS.items() if name in methods},
        "runs": rows,
    }


def pairs(options: Options) -> list[Pair]:
    """Return what is registered: presets with several seeds, then the real pair if it is there."""
    known = (*BENCHMARK_FIELDS, EASIFISH)
    wanted = options.only or (("polynomial_small",) if options.small else known)
    volume = SMALL if options.small else "medium"
    found: list[Pair] = [
        SyntheticPair(case=Case(volume=volume, field=field, seed=seed))
        for field in wanted
        if field != EASIFISH
        for seed in range(options.seeds or (1 if options.small else SEEDS))
    ]
    if EASIFISH in wanted and (options.data or EASIFISH in options.only):
        found.append(TissuePair(folder=require_data(options, EASIFISH)))
    return found


def measure(method: str, pair: Pair, folder: Path, time_limit: float | None) -> Row:
    """Run a tool on a pair that is on disk, and judge what comes back."""
    row: Row = {
        "case": pair.key,
        "method": method,
        "input": pair.input,
        "status": "ok",
        "reason": "",
        "load_before": os.getloadavg()[0],
        "seconds": None,
        "details": {},
    }
    try:
        attempt = run_with_tilereg if method == "tilereg" else run_with_bigstream
        outcome = attempt(pair, folder, method, time_limit)
    except (CommandError, Unavailable) as error:
        status = "failed" if isinstance(error, CommandError) else "unavailable"
        return row | {"status": status, "reason": str(error)}
    cost = {k: v for k, v in outcome.cost.as_dict().items() if k != "timeline"}
    return {
        **row,
        **cost,
        **pair.judge(outcome),
        "transform_bytes": outcome.transform_bytes,
        "details": outcome.details,
    }


def tables(figures: dict[str, Any]) -> str:
    """Return accuracy and cost of both, a table an input group."""
    rows = figures["runs"]
    synthetic = [row for row in rows if row["input"] != EASIFISH]
    real = [row for row in rows if row["input"] == EASIFISH]
    parts = [
        "# Beside bigstream\n",
        f"From two images on disk to the registered image on disk, {figures['cores']} cores. "
        "A cell is the median over the seeds and, in brackets, the smallest and largest. Memory "
        f"is that of all processes together ({rows[0].get('memory_kind', 'PSS')}, sampled). "
        "`gave up`: alignments of bigstream, blocks or the global one, that went on with the "
        f"identity. The machine's load before a run was {_loads(rows)}: where it is above the "
        "number of cores, CPU seconds are what to compare.\n",
    ]
    if synthetic:
        parts += ["## The published benchmark\n", _synthetic_table(synthetic)]
    if real:
        parts += ["## EASI-FISH\n", _real_table(real)]
    failed = reasons(rows)
    if failed:
        parts += ["## Runs without a result\n", failed]
    notes = [f"* `{name}`: {s['about']}\n" for name, s in figures["settings"].items()]
    return "\n".join([*parts, "## bigstream's settings\n", *notes])


def _loads(rows: Sequence[Row]) -> str:
    """Return the least and the largest load."""
    loads = [row["load_before"] for row in rows]
    return f"{number(min(loads), 2)} to {number(max(loads), 2)}"


def _synthetic_table(rows: Sequence[Row]) -> str:
    """Return errors, similarity and cost, a line a deformation and tool."""
    head = ["deformation", "tool", "runs", "spots: median (voxel)", "95 %", "grid inside: median",
            "95 %", "NCC", "NCC in the overlap", *_COSTS]  # fmt: skip
    lines = [
        [
            name,
            f"`{method}`",
            in_words(group),
            *(spread(group, f"errors.{k}") for k in _ERRORS),
            *(number(middle(group, k)) for k in ("image.ncc", "ncc_overlap")),
            *_costs(group),
        ]
        for (name, method), group in grouped(rows, "input", "method").items()
    ]
    return table(head, lines)


_ERRORS = ("spots.median", "spots.p95", "grid_inside.median", "grid_inside.p95")
_COSTS = ("seconds", "CPU s", "memory (GB)", "transform (MB)", "gave up")


def _real_table(rows: Sequence[Row]) -> str:
    """Return correlation and cost, a line a tool."""
    head = ["tool", "NCC before", "after", "overlap", *_COSTS]
    lines = [
        [
            f"`{row['method']}`",
            *(number(row.get(k)) for k in ("ncc_before", "ncc_overlap", "overlap")),
            *_costs([row]),
        ]
        for row in rows
    ]
    return table(head, lines)


def _costs(group: list[Row]) -> list[str]:
    """Return time, memory, size of the transform and failed alignments of some runs."""
    memory, size = worst(group, "peak_memory_bytes"), middle(group, "transform_bytes")
    return [
        spread(group, "seconds"),
        number(middle(group, "cpu_seconds")),
        "-" if memory is None else number(memory / 1e9),
        "-" if size is None else number(size / 1e6),
        _given_up(group),
    ]


def _given_up(group: list[Row]) -> str:
    """Say how many alignments gave up, of how many."""
    failed: dict[str, int] = {}
    blocks = 0
    for row in group:
        blocks += row["details"].get("blocks", 0)
        for step, count in row["details"].get("failed", {}).items():
            failed[step] = failed.get(step, 0) + count
    texts = [
        f"{step} {count} of {blocks if step.startswith('block') else len(group)}"
        for step, count in failed.items()
        if count
    ]
    return ", ".join(texts) or ("none" if failed else "-")
