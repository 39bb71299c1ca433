"""What the server and its worker say to each other: JSON, and bytes of a picture behind it.

A frame is two big-endian lengths of four bytes, then the JSON, then the bytes. Nothing is pickled.
"""

from __future__ import annotations

import json
import struct
from asyncio import StreamReader
from typing import Any, BinaryIO

Message = dict[str, Any]
HEAD = struct.Struct(">II")


def packed(message: Message, data: bytes = b"") -> bytes:
    """Give a message as a frame."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def read(stream: BinaryIO) -> tuple[Message, bytes] | None:
    """Wait for the next message; None at the end of the stream."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    text, data = HEAD.unpack(head)
    body = stream.read(text + data)
    return (json.loads(body[:text]), body[text:]) if len(body) == text + data else None


async def read_async(stream: StreamReader) -> tuple[Message, bytes]:
    """Wait for the next message.

    Raises:
        asyncio.IncompleteReadError: the stream ended.
    """
    text, data = HEAD.unpack(await stream.readexactly(HEAD.size))
    body = await stream.readexactly(text + data)
    return json.loads(body[:text]), body[text:]
