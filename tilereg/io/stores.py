"""Where images lie: folders on a disk, objects behind an fsspec URL.

JSON documents are read and written here through fsspec; voxels go through the zarr store
that `Location.store` returns.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from tilereg.errors import InputError, OutputError, TileregError

__all__ = ["MARKERS", "Location", "one_line", "outputs"]

#: What marks a folder as a zarr group or array.
MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")

_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an error as one line without full stop: class and text, cut at `limit` characters."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@dataclass(frozen=True)
class Location:
    """A folder, local or remote. Picklable; opens nothing by itself.

    Parameters
    ----------
    url : str
        An absolute local path, or an fsspec URL, without a slash at its end.
    options : mapping
        What fsspec is told beside the URL (credentials, endpoint). Never shown.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @classmethod
    def of(cls, place: str | Path, options: Mapping[str, Any] | None = None) -> Location:
        """Return the location of a path or URL as a user writes it.

        Raises
        ------
        InputError
            If `place` is empty.
        """
        url = os.fspath(place)
        for prefix in ("file://", "local://"):
            url = url.removeprefix(prefix)
        if not url.strip():
            raise InputError("The location is empty. Give the path or the URL of an OME-Zarr.")
        if not _is_remote(url):
            # A worker process may have another working folder.
            return cls(os.path.abspath(os.path.expanduser(url)), dict(options or {}))
        return cls(url.rstrip("/"), dict(options or {}))

    def __str__(self) -> str:
        """Return the path or URL."""
        return self.url

    @property
    def is_remote(self) -> bool:
        """Whether this is a URL."""
        return _is_remote(self.url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.url.replace(os.sep, "/")) or self.url

    @property
    def stem(self) -> str:
        """The last part of the path without what says that it is an OME-Zarr."""
        return self.name.removesuffix(".zarr").removesuffix(".ome") or self.name

    @property
    def parent(self) -> Location:
        """The folder above."""
        return Location(posixpath.dirname(self.url), self.options)

    def child(self, path: str) -> Location:
        """Return a location below this one; `path` has slashes between its parts."""
        clean = posixpath.normpath(path).lstrip("/")
        return self if clean == "." else Location(f"{self.url}/{clean}", self.options)

    def filesystem(self) -> tuple[Any, str]:
        """Return the fsspec file system and the path in it.

        Raises
        ------
        InputError
            If fsspec knows no such protocol, or the package for it is not installed.
        """
        if not self.is_remote:
            return fsspec.filesystem("file"), self.url
        try:
            system, path = fsspec.core.url_to_fs(self.url, **self.options)
        except (ImportError, ValueError, TypeError) as error:
            raise InputError(
                f"'{self.url}' cannot be opened ({one_line(error)}). Check the protocol, the "
                "storage options and that the package for it is installed (s3fs for s3://)."
            ) from error
        return system, path

    def read_text(self, key: str) -> str | None:
        """Return the text of a small file in this folder, None where there is none.

        Raises
        ------
        PermissionError
            If the file, or the place where it would be, may not be read.
        """
        system, path = self.filesystem()
        try:
            data: bytes = system.cat_file(f"{path.rstrip('/')}/{key}")
        except _MISSING:
            return None
        except Exception as error:
            # HTTP answers are of a class of aiohttp's own, which is no OSError.
            if getattr(error, "status", None) in (401, 403):
                raise PermissionError(one_line(error)) from error
            raise
        return data.decode("utf-8-sig", errors="replace")

    def write_text(self, key: str, text: str) -> None:
        """Write a small file into this folder: all of it or nothing."""
        if not self.is_remote:
            path = Path(self.url, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
            return
        system, root = self.filesystem()
        system.pipe_file(f"{root.rstrip('/')}/{key}", text.encode())

    def write_json(self, key: str, content: Mapping[str, Any]) -> None:
        """Write a JSON document into this folder."""
        self.write_text(key, json.dumps(content, indent=2))

    def exists(self) -> bool:
        """Tell whether anything is here; an empty folder counts as nothing."""
        return bool(self.listing()) or self._is_file()

    def listing(self) -> list[str]:
        """Return the names in this folder, nothing where there is no folder."""
        system, path = self.filesystem()
        # Another instance may have written here: the listing that this one kept is old.
        system.invalidate_cache()
        try:
            found = [str(entry) for entry in system.ls(path, detail=False)]
        except _MISSING:
            return []
        names = [posixpath.basename(entry.rstrip("/")) for entry in found]
        own = path.rstrip("/")
        return [
            name
            for name, entry in zip(names, found, strict=True)
            if name and entry.rstrip("/").removeprefix("/") != own.removeprefix("/")
        ]

    def _is_file(self) -> bool:
        """Tell whether anything but a folder is here: a file, a pipe, a device."""
        system, path = self.filesystem()
        return bool(system.exists(path) and not system.isdir(path))

    def remove(self) -> None:
        """Remove this folder and all below it, or this file; the zarr markers go last.

        Names are taken as they are: a `*` or `[` in one is no pattern.
        """
        if not self.is_remote:
            _remove_local(Path(self.url))
            return
        system, path = self.filesystem()
        system.invalidate_cache()
        found = [str(key) for key in system.find(path)]
        for keys in _markers_last(found, path):
            _remove_keys(system, keys)
        system.invalidate_cache()
        if system.exists(path):
            # Object stores have no folders; elsewhere they are left, empty.
            folders = [str(key) for key in system.find(path, withdirs=True)]
            for folder in sorted({*folders, path}, key=len, reverse=True):
                with suppress(FileNotFoundError):
                    system.rmdir(folder)
        system.invalidate_cache()

    def store(self, *, read_only: bool) -> Store:
        """Return a zarr store of this folder, for this process."""
        if not self.is_remote:
            return LocalStore(self.url, read_only=read_only)
        return FsspecStore.from_url(
            self.url, storage_options=dict(self.options), read_only=read_only
        )


def _is_remote(url: str) -> bool:
    """Tell whether this is an fsspec URL, chained or not."""
    return "://" in url or "::" in url


def _remove_local(path: Path) -> None:
    """Remove a folder, markers last, or a file; a link to a folder stays, to an empty folder."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name in MARKERS):
        if entry.is_symlink() or not entry.is_dir():
            entry.unlink(missing_ok=True)
        elif any((entry / marker).exists() for marker in MARKERS):
            _remove_local(entry)
        else:
            shutil.rmtree(entry)
    if not path.is_symlink():
        path.rmdir()


def _markers_last(keys: Sequence[str], root: str) -> tuple[list[str], list[str], list[str]]:
    """Return what is no zarr marker, the markers below the root, and those of the root."""
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    for key in keys:
        folder, name = posixpath.split(key)
        of_root = folder.strip("/") == root.strip("/")
        groups[0 if name not in MARKERS else 2 if of_root else 1].append(key)
    return groups


def _remove_keys(system: Any, keys: Sequence[str]) -> None:
    """Remove files by their exact names."""
    # fsspec takes names with these for patterns, unless they go one by one.
    plain = [key for key in keys if not set(key) & set("*?[")]
    if plain:
        system.rm(plain)

    def remove(key: str) -> None:
        with suppress(FileNotFoundError):
            system.rm_file(key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove, set(keys) - set(plain)))


@contextmanager
def outputs(verb: str, what: str) -> Iterator[None]:
    """Turn what a disk or server refuses while `what` is written into one line.

    Raises
    ------
    OutputError
        In place of every other exception.
    """
    try:
        yield
    except (TileregError, MemoryError):
        raise
    except Exception as error:
        # Storage backends raise classes of their own beside OSError.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space" if full else "Check permissions and connection"
        raise OutputError(f"Cannot {verb} {what} ({one_line(error)}). {remedy}.") from error
