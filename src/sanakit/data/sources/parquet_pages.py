"""What a parquet file says of its columns, and what their pages unpack to by their own headers.

Those headers decide what is allocated. pyarrow does not show them, and it ends the process where
what it does show of a column is damaged, so both are read here.
https://github.com/apache/parquet-format, structs FileMetaData and PageHeader, in the compact
protocol of Thrift.
"""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

from sanakit.untrusted import open_file

TAIL = 8
"""Bytes behind the footer: its length, and the format's mark."""
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    12,
)
"""Types of fields that occur."""
DEEPEST = 12


class Chunk(NamedTuple):
    """A column of a row group, and where its pages lie."""

    column: tuple[str, ...]
    unpacked: int
    """Bytes, by the footer's word."""
    start: int
    stop: int


def chunks_of(path: Path) -> list[list[Chunk]]:
    """The columns of each row group of a file.

    Raises:
        OSError, ValueError, LookupError: the file is damaged.
    """
    with open_file(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        end = len(data) - TAIL
        footer = _Struct(data, end - int.from_bytes(data[end : end + 4], "little")).fields()
        return [
            [_chunk(column[3]) for column in _each(group[1])] for group in _each(footer.get(4, []))
        ]


def unpacked_by_pages(path: Path, chunks: list[Chunk]) -> list[int]:
    """Bytes that each of the chunks unpacks to.

    Raises:
        OSError, ValueError, LookupError: they are not where the file says, or no pages.
    """
    with open_file(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return [_unpacked(data, chunk) for chunk in chunks]


def _chunk(told: Any) -> Chunk:
    """From the fields of ColumnMetaData."""
    if not isinstance(told, dict) or not isinstance(told[3], list):
        raise ValueError("a column without a name")
    start = _whole(told[9])
    if _whole(told.get(11, 0)):  # the page of the dictionary
        start = min(start, told[11])
    names = tuple(name.decode() for name in told[3])
    return Chunk(names, _whole(told[6]), start, start + _whole(told[7]))


def _unpacked(data: mmap, chunk: Chunk) -> int:
    at, total = chunk.start, 0
    while at < chunk.stop:
        header = _Struct(data, at)
        sizes = header.fields()
        total += _whole(sizes[2])
        at = header.at + _whole(sizes[3])
    return total


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


def _each(structs: Any) -> list[dict[int, Any]]:
    if not isinstance(structs, list) or not all(isinstance(each, dict) for each in structs):
        raise ValueError("no list of structs")
    return structs


class _Struct:
    """A struct in the compact protocol, read from a place on."""

    def __init__(self, data: mmap, at: int) -> None:
        if at < 0:
            raise ValueError("begins before the file")
        self.data, self.at = data, at

    def fields(self, depth: int = 0) -> dict[int, Any]:
        """Values by field."""
        found: dict[int, Any] = {}
        field = 0
        while kind := self._byte():
            field = field + (kind >> 4) if kind >> 4 else self._integer()
            kind &= 15
            found[field] = kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("structs in structs")
        if kind in (I16, I32, I64):
            return self._integer()
        if kind == STRUCT:
            return self.fields(depth)
        if kind in (LIST, SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self.data) - self.at:
                raise ValueError(f"a list of {count}")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # of a list; a field has its truth in its type
            return self._byte()
        if kind not in (BINARY, DOUBLE):
            raise ValueError(f"a field of the type {kind}")
        length = 8 if kind == DOUBLE else self._varint()
        start = self.at
        self.at += length
        return self.data[start : self.at]

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
