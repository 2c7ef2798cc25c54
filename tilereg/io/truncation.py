"""Chunks that were cut short, found before a decoder reads behind their end.

Blosc's decoder trusts the length that a chunk's header tells and never learns how many bytes
there are. Of a file that was cut it decodes whatever lies behind it in memory: other voxels, and
often no error. Of a shard without a single byte zarr makes one that was never stored: all fill
value. The other codecs notice by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

__all__ = ["CutShortError", "WholeChunks", "is_blosc"]

#: Bytes of a Blosc header. The last four are the length of the chunk, header included.
_HEADER = 16


class CutShortError(ValueError):
    """A chunk has fewer bytes than it should have."""


def is_blosc(document: Mapping[str, Any]) -> bool:
    """Tell from an array's metadata document whether its files are Blosc chunks."""
    if document.get("zarr_format") == 2:
        return (document.get("compressor") or {}).get("id") == "blosc"
    last = document["codecs"][-1]
    return (last if isinstance(last, str) else last.get("name")) == "blosc"


class WholeChunks(WrapperStore[Store]):
    """A store of one array's chunks that hands out none that was cut short.

    Parameters
    ----------
    store : Store
        Where the chunks are.
    blosc : bool
        Whether a file is a Blosc chunk, not a shard of them or of another codec.
    """

    def __init__(self, store: Store, *, blosc: bool = False) -> None:
        super().__init__(store)
        self._blosc = blosc

    def _with_store(self, store: Store) -> Self:
        """Return the same for another store."""
        return type(self)(store, blosc=self._blosc)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return what the store returns, None for a chunk that is not stored.

        Raises
        ------
        CutShortError
            If a Blosc chunk or the asked part of a shard is shorter than it should be, or a file
            is empty.
        """
        value = await self._store.get(key, prototype, byte_range)
        if value is None:
            return None
        # No codec stores a chunk or shard as nothing.
        _check_length(len(value), 1)
        if isinstance(byte_range, RangeByteRequest):
            _check_length(len(value), byte_range.end - byte_range.start)
        elif byte_range is None and self._blosc:
            _check_length(len(value), _HEADER)
            told = value[_HEADER - 4 : _HEADER].to_bytes()
            _check_length(len(value), int.from_bytes(told, "little"))
        return value


def _check_length(found: int, needed: int) -> None:
    """Raise where bytes are missing."""
    if found < needed:
        raise CutShortError(f"it has {found} bytes of {needed}")
