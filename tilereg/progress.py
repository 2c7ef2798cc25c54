"""How long work tells where it is: stages with a number of steps, and notes in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Progress", "Silent", "Stage"]


class Stage(Protocol):
    """One stage of a run while it goes on."""

    def advance(self, steps: int = 1) -> None:
        """Say that so many more steps are done."""


class Progress(Protocol):
    """What a run reports to."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Open a stage of `total` steps (None where they cannot be counted)."""
        yield Silent()

    def note(self, text: str) -> None:
        """Say one line."""


class Silent:
    """Reports nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """Open a stage that nobody sees."""
        yield self

    def advance(self, steps: int = 1) -> None:
        """Pass."""

    def note(self, text: str) -> None:
        """Pass."""
