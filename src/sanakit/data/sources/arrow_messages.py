"""What a compressed message of an Arrow stream says that it unpacks to, before it is unpacked.

Its head is a flatbuffer: in each table a list of offsets says where the numbered fields are.
https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

from typing import Any

HEADER = 2
"""A field of the table Message."""
DATA = 1
"""A field of DictionaryBatch."""
BUFFERS, COMPRESSION = 2, 3
"""Fields of RecordBatch."""
PLACE = 16
"""Bytes that say where in a body a buffer is, and how long."""


def unpacked_by_its_word(message: Any) -> int:
    """Bytes that the buffers of a message unpack to; 0 where it is not compressed.

    Arrow refuses a buffer that unpacks to another length than it says.
    """
    if message.type not in ("record batch", "dictionary"):
        return 0
    head, body = message.metadata.to_pybytes(), memoryview(message.body)
    batch = _followed(head, _field(head, _followed(head, 0), HEADER))
    if message.type == "dictionary":
        batch = _followed(head, _field(head, batch, DATA))
    if _field(head, batch, COMPRESSION) is None:
        return 0
    buffers = _followed(head, _field(head, batch, BUFFERS))
    count = min(_number(head, buffers, 4), len(head) // PLACE)
    offsets = (_number(head, buffers + 4 + PLACE * each, 8) for each in range(count))
    return sum(max(0, _number(body, offset, 8)) for offset in offsets)  # -1: it is not compressed


def _number(data: bytes | memoryview, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little", signed=True)


def _followed(head: bytes, at: int | None) -> int:
    """Where the offset at a place leads to."""
    if at is None:
        raise ValueError("a message lacks what it should hold")
    return at + _number(head, at, 4)


def _field(head: bytes, table: int, number: int) -> int | None:
    """Where a field of a table is; None where the table lacks it."""
    offsets = table - _number(head, table, 4)
    place = 4 + 2 * number
    if place >= _number(head, offsets, 2):
        return None
    offset = _number(head, offsets + place, 2)
    return table + offset if offset else None
