"""Single files at a location: a local path, or a URL that fsspec understands."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tilereg.errors import InputError, OutputError
from tilereg.io.stores import Location, one_line, outputs

__all__ = ["check_free", "opened", "replaced", "suffix_of"]


def suffix_of(location: str | Path) -> str:
    """Return the suffix of a location in small letters, '.csv' for 's3://bucket/a.CSV'."""
    return Path(str(location).rstrip("/").rsplit("/", 1)[-1]).suffix.lower()


@contextmanager
def opened(location: str | Path, what: str) -> Iterator[BinaryIO]:
    """Open a file to read; `what` says in an error what was looked for.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    """
    system, path = Location.of(location).filesystem()
    try:
        if system.isdir(path):
            raise InputError(f"'{location}' is a folder, not a file.")
        stream = system.open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"No {what} at '{location}': no such file.") from error
    except OSError as error:
        raise InputError(f"Cannot read '{location}': {one_line(error)}.") from error
    with stream:
        yield stream


def check_free(location: str | Path, *, overwrite: bool) -> None:
    """Raise if something is at a location and must not be replaced.

    Raises
    ------
    OutputError
        If the location is taken and `overwrite` is false.
    """
    if overwrite:
        return
    system, path = Location.of(location).filesystem()
    system.invalidate_cache()  # what is there may have come after this machine last looked
    if system.exists(path):
        raise OutputError(
            f"'{location}' exists already. Remove it, or use overwrite (--overwrite)."
        )


@contextmanager
def replaced(location: str | Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file to write that appears under its name only when it is complete.

    A local file is written beside its place and renamed; folders above it are made. A file at a
    URL is written to this machine's folder for temporary files and then uploaded as a whole.

    Raises
    ------
    OutputError
        If the location is taken and `overwrite` is false, or it cannot be written.
    """
    place = Location.of(location)
    system, path = place.filesystem()
    check_free(location, overwrite=overwrite)
    with outputs("write", f"'{location}'"):
        if not place.is_remote:
            with _renamed(Path(path)) as stream:
                yield stream
        else:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / "file"
                with temporary.open("xb") as stream:
                    yield stream
                system.put_file(str(temporary), path)


@contextmanager
def _renamed(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside a path; rename it at the end, remove it after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with temporary.open("xb") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
