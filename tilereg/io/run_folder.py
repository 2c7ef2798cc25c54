"""The folder of a run: what is in it, whose it is, and what is finished.

A run goes on only in a folder that was made with the same settings from the same inputs. What
is finished is told by small files below ``progress/``, each written as a whole, so the rule is
the same on a local disk and in object storage.
"""

from __future__ import annotations

import errno
import json
import os
import time
import tomllib
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilereg.errors import OutputError, ResourceError, TileregError
from tilereg.io.stores import Location, one_line, outputs

__all__ = ["Finished", "RunFolder", "check_apart"]

_MARK = "run.toml"
# All that a run writes. Nothing else is ever removed.
_OWN = {
    _MARK,
    "progress",
    "qc.json",
    "registered.ome.zarr",
    "transform.ome.zarr",
    "spots_fixed.parquet",
    "spots_moving.parquet",
    "matches.parquet",
    "landmarks.parquet",
}
_ASIDE = ".replaced"
_PROGRESS = "progress"
# Units are noted in batches, but no more than so many, or seconds of work, are ever lost.
_BATCH = 64
_SECONDS = 5.0


def check_apart(output: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise if an input lies in the output, which may be removed.

    Raises
    ------
    OutputError
        Naming both.
    """
    folder = _resolved(output)
    for place in inputs:
        if f"{_resolved(place)}/".startswith(f"{folder}/"):
            raise OutputError(
                f"The input '{place}' lies in the output '{output}', where it could be lost. "
                "Choose another output."
            )


def _resolved(place: str | Path) -> str:
    """Return a location without symbolic links."""
    location = Location.of(place)
    return location.url if location.is_remote else os.path.realpath(location.url)


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes.

    Parameters
    ----------
    location : Location
    """

    location: Location

    @classmethod
    def at(cls, place: str | Path) -> RunFolder:
        """Return the folder at a path or URL; nothing is made yet."""
        return cls(Location.of(place))

    def path(self, name: str) -> str:
        """Return the path or URL of something in the folder."""
        return self.location.child(name).url

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file of the folder, nothing where there is none."""
        return dict(json.loads(self.location.read_text(name) or "{}"))

    @contextmanager
    def prepared(self, record: str, *, overwrite: bool, resume: bool) -> Iterator[bool]:
        """Hold the folder while a run writes to it.

        Parameters
        ----------
        record : str
            TOML of everything that decides the result: the settings, the inputs, the versions.
        overwrite : bool
            Whether a run that is there is removed first.
        resume : bool
            Whether a run that is there goes on.

        Yields
        ------
        bool
            Whether there is work of an earlier start.

        Raises
        ------
        OutputError
            If the folder is taken, is not a run's, or belongs to a run with another record.

        Notes
        -----
        After an error the folder is removed, unless it holds work of an earlier start. After an
        interrupt, and where a machine gave out (`ResourceError`), it is kept, so that the run
        can go on. A local run that is to be replaced is moved aside, comes back after an error,
        and is removed when the new one is complete.
        """
        resumed = self._claim(record, overwrite=overwrite, resume=resume)
        try:
            if not resumed:
                self.location.write_text(_MARK, record)
            yield resumed
            self._drop_aside()
        except ResourceError as error:
            if self.location.child(_PROGRESS).listing():
                raise ResourceError(
                    f"{error} What is finished is kept in '{self.location}'; --resume goes on."
                ) from error
            self._discard()
            raise
        except (TileregError, OSError) as error:
            if not resumed:
                self._discard()
            if isinstance(error, TileregError):
                raise
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "Free some space" if full else "Check permissions and connection"
            raise OutputError(
                f"The run in '{self.location}' stopped ({one_line(error)}). {remedy}, or choose "
                "another place."
            ) from error

    def _discard(self) -> None:
        """Remove what the run wrote; a failure must not hide what went wrong before."""
        with suppress(OSError, TileregError):
            self.remove()
            if self._aside.exists():
                os.replace(self._aside.url, self.location.url)

    def remove(self) -> None:
        """Remove what a run writes, and the folder where nothing else is in it.

        What tells that it is a run's goes last.
        """
        for name in sorted(self.location.listing(), key=lambda name: name == _MARK):
            if name in _OWN:
                self.location.child(name).remove()
        if not self.location.listing():
            self.location.remove()

    @property
    def _aside(self) -> Location:
        """Where a local run is kept while another takes its place."""
        return Location(self.location.url + _ASIDE, self.location.options)

    def _move_aside(self) -> None:
        """Make room for a new run; the old one is kept until the new one is complete."""
        if self.location.is_remote or self._aside.exists():
            # A store at a URL cannot be renamed; what is aside already is the last complete run.
            self.remove()
        else:
            os.replace(self.location.url, self._aside.url)

    def _drop_aside(self) -> None:
        """Remove the run that was replaced."""
        if not self.location.is_remote and self._aside.exists():
            RunFolder(self._aside).remove()

    def check_free(self, *, overwrite: bool = False, resume: bool = False) -> str | None:
        """Return what the run that is there was asked for, None where there is nothing.

        Raises
        ------
        OutputError
            If the folder is no run's, or a run's that may neither go on nor be removed.
        """
        with outputs("use", f"'{self.location}'"):
            if not self.location.exists():
                return None
            found = self.location.read_text(_MARK)
        if found is None:
            raise OutputError(
                f"'{self.location}' exists and is not the folder of a run (it has no {_MARK}). "
                "Choose another place; it is not removed, not even with --overwrite."
            )
        strange = sorted(set(self.location.listing()) - _OWN)
        if overwrite and (strange or not _is_record(found)):
            what = f"'{strange[0]}'" if strange else f"a {_MARK} of something else"
            raise OutputError(
                f"'{self.location}' holds {what}, which no run writes. Move it away or choose "
                "another place; it is not removed, not even with --overwrite."
            )
        if not (overwrite or resume):
            raise OutputError(
                f"'{self.location}' holds a run already. Choose another place, or go on with "
                "--resume, or start anew with --overwrite."
            )
        return found

    def _claim(self, record: str, *, overwrite: bool, resume: bool) -> bool:
        """Make sure that the folder is ours; return whether a run goes on in it."""
        found = self.check_free(overwrite=overwrite, resume=resume)
        if found is None:
            return False
        if resume:
            self._check_same(found, record)
            return True
        with outputs("remove", f"the run in '{self.location}'"):
            self._move_aside()
        return False

    def _check_same(self, found: str, record: str) -> None:
        """Raise if the run in the folder was asked for differently."""
        try:
            old, new = _flat(tomllib.loads(found)), _flat(tomllib.loads(record))
        except tomllib.TOMLDecodeError as error:
            raise OutputError(
                f"'{self.path(_MARK)}' is damaged ({error}). Start anew with --overwrite."
            ) from error
        other = [
            f"{name} was {old.get(name, 'not set')}, is {new.get(name, 'not set')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name) and not name.startswith("compute.")
        ]
        if other:
            raise OutputError(
                f"The run in '{self.location}' cannot go on: {'; '.join(other)}. Use the same "
                "settings, inputs and versions, or start anew with --overwrite."
            )

    def finished(self, name: str) -> Finished:
        """Return the record of the finished units of a long stage."""
        return Finished(self.location.child(f"{_PROGRESS}/{name}"))

    def mark(self, stage: str, content: dict[str, Any] | None = None) -> None:
        """Say that a stage is complete."""
        self.location.child(_PROGRESS).write_json(f"{stage}.json", content or {})

    def marked(self, stage: str) -> dict[str, Any] | None:
        """Return what was said of a complete stage, None where it is not complete."""
        text = self.location.child(_PROGRESS).read_text(f"{stage}.json")
        return None if text is None else dict(json.loads(text))


@dataclass
class Finished:
    """Numbers of finished units, written in batches.

    Parameters
    ----------
    location : Location
        Folder of the batches.
    """

    location: Location
    _pending: list[int] = field(default_factory=list)
    _since: float = field(default_factory=lambda: time.monotonic())

    def read(self) -> set[int]:
        """Return all numbers that were written."""
        numbers: set[int] = set()
        for name in self.location.listing():
            if name.endswith(".json"):
                numbers.update(json.loads(self.location.read_text(name) or "{}").get("units", []))
        return numbers

    def add(self, number: int) -> None:
        """Note one finished unit."""
        self._pending.append(number)
        if len(self._pending) >= _BATCH or time.monotonic() - self._since > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is noted."""
        if self._pending:
            self.location.write_json(f"{uuid.uuid4().hex}.json", {"units": self._pending})
            self._pending.clear()
        self._since = time.monotonic()


def _is_record(text: str) -> bool:
    """Tell whether a TOML text is the record of a run."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return {"run_inputs", "run_versions"} <= tables.keys()


def _flat(tables: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
