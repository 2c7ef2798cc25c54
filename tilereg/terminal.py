"""What a user sees: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from tilereg.progress import Progress, Silent, Stage
from tilereg.summary import format_seconds

__all__ = [
    "Bars",
    "Lines",
    "open_progress",
    "print_json",
    "print_rows",
    "print_table",
    "print_text",
    "say",
]

_NAME_WIDTH = 24
_PLAIN_WIDTH = 200
_TENTHS = 10
_SECONDS_BETWEEN = 2.0


def say(text: str) -> None:
    """Write one line to stderr."""
    print(" ".join(text.split()), file=sys.stderr, flush=True)


def open_progress(*, quiet: bool = False) -> AbstractContextManager[Progress]:
    """Return what shows progress: bars on a terminal, plain lines elsewhere, or nothing."""
    if quiet:
        return nullcontext(Silent())
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return Bars(console)
    return nullcontext(Lines())


class Lines:
    """Progress as plain lines, for log files: ``detect fixed: 12/48``.

    A stage says when it begins and ends, and in between at most once a tenth of its steps.

    Parameters
    ----------
    clock : callable
        Returns seconds; lines are at least two apart.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Open a stage; its last line is missing where it fails."""
        stage = _LinesStage(name, total, self._clock)
        yield stage
        stage.finish()

    def note(self, text: str) -> None:
        """Say one line."""
        say(text)


class _LinesStage:
    """One stage of `Lines`."""

    def __init__(self, name: str, total: int | None, clock: Callable[[], float]) -> None:
        self._name = name
        self._total = total
        self._clock = clock
        self._done = 0
        self._said = 0
        self._next = clock() + _SECONDS_BETWEEN
        say(f"{name}: 0/{total}" if total else f"{name} ...")

    def advance(self, steps: int = 1) -> None:
        """Count steps, and say so where a tenth or more is new and time has passed."""
        self._done += steps
        if self._done * _TENTHS // (self._total or self._done or 1) <= self._said:
            return
        if self._total and self._done < self._total and self._clock() >= self._next:
            self._say()

    def finish(self) -> None:
        """Say how far it came."""
        if self._total:
            self._say()
        else:
            say(f"{self._name}: done")

    def _say(self) -> None:
        """Say how many steps are done."""
        assert self._total
        self._said = self._done * _TENTHS // self._total
        self._next = self._clock() + _SECONDS_BETWEEN
        say(f"{self._name}: {self._done}/{self._total}")


class _CountColumn(ProgressColumn):
    """Steps done of all, or nothing where they cannot be counted."""

    def render(self, task: Task) -> Text:
        """Return the text of one stage."""
        return Text(_count(task), style="progress.download")


class Bars:
    """Progress as bars on a terminal; a stage that is over leaves one line.

    Parameters
    ----------
    console : rich.console.Console
        Where the bars are drawn.
    """

    def __init__(self, console: Console) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            _CountColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            # What is printed to stdout is a result and belongs there.
            redirect_stdout=False,
        )

    def __enter__(self) -> Bars:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the terminal as it was."""
        self._bars.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Open a stage; it leaves no line where it fails."""
        number = self._bars.add_task(f"{name:<{_NAME_WIDTH}}", total=total or None)
        try:
            yield _BarsStage(self._bars, number)
            task = next(task for task in self._bars.tasks if task.id == number)
            seconds = format_seconds(task.elapsed or 0.0)
            self.note(f"{name:<{_NAME_WIDTH}} {_count(task) or 'done':>15} {seconds:>12}")
        finally:
            self._bars.remove_task(number)

    def note(self, text: str) -> None:
        """Say one line above the bars."""
        self._bars.console.print(Text(text), soft_wrap=True, highlight=False)


class _BarsStage:
    """One stage of `Bars`."""

    def __init__(self, bars: RichProgress, number: Any) -> None:
        self._bars = bars
        self._number = number

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._bars.advance(self._number, steps)


def _count(task: Task) -> str:
    """Return the steps done of all."""
    return "" if task.total is None else f"{int(task.completed):,}/{int(task.total):,}"


def _console() -> Console:
    """Return a console for results, wide where no terminal limits it."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


def print_text(text: str = "") -> None:
    """Print lines as they are: nothing is wrapped, so that paths can be copied."""
    _console().print(Text(text), soft_wrap=True)


def print_rows(rows: Iterable[tuple[str, str]], *, title: str = "") -> None:
    """Print names and values below each other.

    A terminal gets long values wrapped at spaces; words such as paths are never broken.

    Parameters
    ----------
    rows : iterable of (name, value)
    title : str
        A line above.
    """
    console = _console()
    rows = list(rows)
    indent = max((len(name) for name, _ in rows), default=0) + 2
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    for name, value in rows:
        lines = _wrap(value, console.width - indent) if console.is_terminal else [value]
        text = Text(name.ljust(indent), style="bold")
        text.append(f"\n{' ' * indent}".join(lines), style="not bold")
        console.print(text, soft_wrap=True)


def _wrap(text: str, width: int) -> list[str]:
    """Return a text as lines of a width; no word is broken."""
    lines = textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns that begin with '>' are aligned to the right."""
    console = _console()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        side: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        table.add_column(Text(column.removeprefix(">")), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(table)
    # Without the padding at the ends of lines.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def print_json(value: Any) -> None:
    """Print a value as JSON; what is not a finite number is null."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """Return a value of plain dictionaries, lists, numbers and text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
