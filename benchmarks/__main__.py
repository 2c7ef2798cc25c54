"""Run a benchmark: ``python -m benchmarks NAME``.

    seed        the published pairs, all methods, judged by the field
    hard        what the published pairs do not stress, one axis at a time
    parameters  what the defaults choose, and what the best choice would have given
    clouds      matching alone, from a thousand to millions of spots, beside other packages
    scale       volumes larger than memory, from store to store
    peers       bigstream on the same input and cores
    demo        five synthetic pairs through the whole pipeline
    easifish    the EASI-FISH pair below --data
    merfish     seven MERFISH rounds below --data
    seqfish     41 seqFISH+ hybridisations below --data, dots alone
    embryos     cells of four embryos below --data, in any pose

Writes NAME.json, NAME.md and NAME_*.png into --output. A run that is stopped goes on where it
was: single results are kept in OUTPUT/cache.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing that loads a BLAS may be imported before its number of threads is set, below.
if TYPE_CHECKING:
    from benchmarks.results_files import Options

NAMES = (
    "seed",
    "hard",
    "parameters",
    "clouds",
    "scale",
    "peers",
    "demo",
    "easifish",
    "merfish",
    "seqfish",
    "embryos",
)


def parse(arguments: list[str] | None = None) -> tuple[str, Options]:
    """Read the command line."""
    from benchmarks.results_files import RESULTS, Options

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument(
        "--small", action="store_true", help="seconds: what the tests run; needs --output"
    )
    parser.add_argument("--seeds", type=_count, help="seeds for methods that take seconds")
    parser.add_argument("--slow-seeds", type=_count, help="seeds for methods that take minutes")
    parser.add_argument("--methods", type=_names, default=(), help="a,b: only these methods")
    parser.add_argument("--only", type=_names, default=(), help="a,b: only these presets or axes")
    parser.add_argument(
        "--redo",
        type=_names,
        default=(),
        help="run again: methods a,b, or all, or stale (results of other code)",
    )
    parser.add_argument("--time-limit", type=float, help="seconds a method may take for a pair")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    chosen = parser.parse_args(arguments)
    if chosen.small and chosen.output == RESULTS:
        parser.error("--small needs --output: it must not replace the published results.")
    values = vars(chosen)
    return values.pop("name"), Options(**values)


def _count(text: str) -> int:
    """Read a number of seeds."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _names(text: str) -> tuple[str, ...]:
    """Split a list at its commas."""
    return tuple(part for part in text.split(",") if part)


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and write its results."""
    from benchmarks.results_files import write_results

    name, options = parse(arguments)
    module = import_module(f"benchmarks.{name}")
    found = module.run(options)
    text = module.tables(found)
    write_results(name, found, text, options.output)
    if hasattr(module, "figures"):
        module.figures(found, options.output)
    sys.stdout.write(text)


if __name__ == "__main__":
    from benchmarks.single_thread import ONE_THREAD

    os.environ.update(ONE_THREAD)
    main()
