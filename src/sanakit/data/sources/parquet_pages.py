"""What the pages of a parquet file unpack to, by their own headers: those decide what is allocated.

https://github.com/apache/parquet-format, struct PageHeader, in the compact protocol of Thrift.
"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from sanakit.untrusted import open_file

UNPACKED, PACKED = 2, 3
"""Fields of PageHeader: bytes of a page."""
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
"""Types of fields that a header may have."""
DEEPEST = 4


def unpacked_by_pages(path: Path, chunks: list[Any]) -> list[int]:
    """Bytes that each of the column chunks, as pyarrow describes them, unpacks to.

    Raises:
        OSError, ValueError, LookupError: they are not where the file says, or no pages.
    """
    with open_file(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return [_chunk(data, chunk) for chunk in chunks]


def _chunk(data: mmap, chunk: Any) -> int:
    at = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end, total = at + chunk.total_compressed_size, 0
    while at < end:
        header = _Header(data, at)
        sizes = header.fields()
        if sizes[UNPACKED] < 0 or sizes[PACKED] < 0:
            raise ValueError("a page of a negative size")
        total += sizes[UNPACKED]
        at = header.at + sizes[PACKED]
    return total


class _Header:
    """A struct in the compact protocol, read from a place on."""

    def __init__(self, data: mmap, at: int) -> None:
        self.data, self.at = data, at

    def fields(self, depth: int = 0) -> Mapping[int, int]:
        """Numbers by field; whatever else there is, is passed over."""
        found, field = {}, 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._integer()
            kind &= 15
            if kind in (I16, I32, I64):
                found[field] = self._integer()
            elif kind == STRUCT and depth < DEEPEST:
                self.fields(depth + 1)
            elif kind == BINARY:
                length = self._varint()
                self.at += length
            elif kind in (BYTE, DOUBLE):
                self.at += 1 if kind == BYTE else 8
            elif kind not in (TRUE, FALSE):
                raise ValueError(f"a page header with a field of the type {kind}")
        return found

    def _byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = 0
        for place in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << place
            if byte < 128:
                return value
        raise ValueError("a number of more than ten bytes")

    def _integer(self) -> int:
        """Signs are in the last bit."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
