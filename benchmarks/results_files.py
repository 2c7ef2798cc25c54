"""What a benchmark is asked for, and the files that it leaves.

A benchmark is a module with ``run(options) -> dict`` (figures for JSON), ``tables(figures) ->
str`` (Markdown) and, where there is something to draw, ``figures(figures, folder)``, which writes
``NAME_*.png``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import tilereg

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("tilereg", "numpy", "scipy", "scikit-image", "SimpleITK", "pycpd", "biocpd", "probreg")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks of a benchmark; None means the benchmark's own choice."""

    small: bool = False
    """Seconds instead of hours: the smallest volumes, one seed, few methods."""
    seeds: int | None = None
    """Number of seeds for methods that take seconds."""
    slow_seeds: int | None = None
    """Number of seeds for methods that take minutes."""
    methods: tuple[str, ...] = ()
    """Only these methods."""
    only: tuple[str, ...] = ()
    """Only these presets or axes."""
    redo: tuple[str, ...] = ()
    """Methods whose kept results are thrown away first; 'all' for all of them, 'stale' for those
    of other code of tilereg."""
    time_limit: float | None = None
    """Seconds that a method may take for one pair."""
    output: Path = RESULTS
    """Folder of the results, and of what a stopped run goes on from."""
    data: Path | None = None
    """Folder of the real data sets."""

    @property
    def cache(self) -> Path:
        """Folder of what a stopped run goes on from."""
        return self.output / "cache"


def require_data(options: Options, name: str) -> Path:
    """Return the folder of a data set, or say that it is missing."""
    if options.data is None or not (options.data / name).is_dir():
        raise SystemExit(f"This benchmark needs the data set '{name}': give --data FOLDER.")
    return options.data / name


def machine() -> dict[str, Any]:
    """Describe where a benchmark runs."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": versions,
    }


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_results(name: str, content: dict[str, Any], text: str, folder: Path) -> None:
    """Write ``NAME.json`` and ``NAME.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = plain({"machine": machine(), **content})
    (folder / f"{name}.json").write_text(_in_lines(_rounded(document)))
    (folder / f"{name}.md").write_text(text if text.endswith("\n") else text + "\n")


def _rounded(value: Any) -> Any:
    """Return plain data with numbers of six significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _in_lines(document: dict[str, Any]) -> str:
    """Write JSON with a line an entry, and a line a row where an entry is a list of rows."""
    entries = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(json.dumps(row, allow_nan=False) for row in value)
            text = f"[\n{rows}\n]"
        else:
            text = json.dumps(value, allow_nan=False)
        entries.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with some significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if abs(value) < 1e-4:
        return f"{value:.0e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def save_figure(figure: Figure, path: Path, *, dpi: int = 75) -> None:
    """Write a picture with few colours: noise hardly compresses, and repositories keep it."""
    full = BytesIO()
    figure.savefig(full, dpi=dpi)
    with Image.open(full) as picture:
        picture.convert("RGB").quantize(128).save(path, optimize=True)


def say(text: str) -> None:
    """Write a line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class Ledger:
    """Results of single runs, one JSON line each, kept as soon as they are there."""

    path: Path

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read what is there; a last line that was cut off is left out."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append one result; return it marked with a digest of tilereg's code."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        marked = {"code": CODE, **row}
        text = json.dumps(plain(marked), allow_nan=False) + "\n"
        with self.path.open("a+b") as file:
            # A line that an interrupted run left unfinished must not swallow this one.
            if file.tell() and not _ends_line(self.path):
                file.write(b"\n")
            file.write(text.encode())
        return marked

    def drop(self, methods: Sequence[str]) -> None:
        """Forget the results of methods.

        'all' forgets everything, 'stale' what other code of tilereg has given.
        """
        kept = [
            row
            for row in self.rows()
            if "all" not in methods
            and row["method"] not in methods
            and ("stale" not in methods or row.get("code") == CODE)
        ]
        if self.path.exists():
            self.path.unlink()
        for row in kept:
            self.add({"code": None, **row})


def _digest_of(*folders: Path) -> str:
    """Return eight digits of a hash of all modules in folders."""
    digest = hashlib.sha256()
    for root in folders:
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


# Of the code as it is when a benchmark begins.
CODE = _digest_of(Path(tilereg.__file__).parent, Path(__file__).parent / "methods")


def _ends_line(path: Path) -> bool:
    """Whether the last byte of a file that is not empty ends a line."""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
