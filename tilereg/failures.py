"""How the command line tells what went wrong: one line on stderr, and an exit status.

0: done. 1: an error. 2: the command line itself is wrong. 130: interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from typer.core import TyperGroup
from typer.exceptions import TyperException

from tilereg.errors import TileregError
from tilereg.terminal import say

__all__ = ["Commands", "explain"]

_INTERRUPTED = 130
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Commands(TyperGroup):
    """The sub-commands, with every error told in one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and end the process with its status."""
        arguments = (sys.argv[1:] if args is None else list(args)) or ["--help"]
        try:
            # Not standalone: errors are told here, and a status is returned.
            status = super().main(
                arguments, "tilereg", complete_var, False, windows_expand_args, **extra
            )
        # Nothing is hidden: a defect is told as one, and --debug shows where it is.
        except Exception as error:
            if "--debug" in arguments:
                traceback.print_exception(error)
            say(f"tilereg: error: {explain(error)}")
            sys.exit(error.exit_code if isinstance(error, TyperException) else 1)
        if status == _INTERRUPTED:
            say(f"tilereg: interrupted. {_advice(arguments)}")
        sys.exit(status or 0)


def explain(error: Exception) -> str:
    """Return what went wrong and what to do about it."""
    text = str(error)
    if isinstance(error, TileregError):
        return text
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "tilereg"
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        return f"{message}{stop} See '{command} --help'."
    if isinstance(error, MemoryError):
        return f"Out of memory. {text} Use fewer workers, smaller chunks, or a coarser level."
    if isinstance(error, OSError):
        place = f": '{error.filename}'" if error.filename else ""
        remedy = " Make room, then start again." if error.errno in _NO_SPACE else ""
        return f"{error.strerror or text or type(error).__name__}{place}.{remedy}"
    what = ": ".join(filter(None, (type(error).__name__, text.strip(" .\n"))))
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return (
        f"Unexpected {what}.{notes} This is a defect of tilereg. Run the same command with --debug "
        "and report what it prints."
    )


def _advice(arguments: Sequence[str]) -> str:
    """Return how an interrupted command goes on."""
    if arguments[0] != "register":
        return "Run the same command with --overwrite to start again."
    instead = " in place of --overwrite" if "--overwrite" in arguments else ""
    return f"Run the same command with --resume{instead} to go on where it stopped."
