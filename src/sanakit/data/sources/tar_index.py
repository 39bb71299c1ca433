"""What a tar holds, by its headers alone: keys with a picture and texts, and what is refused."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from sanakit.data.samples import Refusal
from sanakit.data.sources.names import PICTURES, is_hidden, safe_name, shown
from sanakit.data.sources.source import (
    DUPLICATE,
    NO_PICTURE,
    UNREADABLE,
    UNSAFE,
    file_state,
)
from sanakit.errors import DataError

Span = tuple[int, int]  # first byte in the tar, number of bytes
_TEXTS = ("txt", "caption", "json", "cls")
_BROKEN = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)
_TAIL = 1 << 16  # bytes after the end of the archive that are looked at


@dataclass(slots=True)
class Keyed:
    """The members of one key: the picture's ending and span, and those of texts by ending."""

    key: str
    picture: str = ""
    span: Span = (0, 0)
    texts: dict[str, Span] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def index_tar(path: Path) -> tuple[Keyed | Refusal, ...]:
    """The samples of an uncompressed tar in order, with refusals whose ids are keys in the tar.

    A key is a member's name up to the first dot after the last "/", as WebDataset has it. A tar
    that is damaged or cut short gives what lies before, and a refusal with the id "".
    """
    return _index(path, file_state(path))


@lru_cache(maxsize=4)
def _index(path: Path, state: tuple[int, int]) -> tuple[Keyed | Refusal, ...]:
    keyed: dict[str, Keyed] = {}
    refusals: list[Refusal] = []
    try:
        with path.open("rb") as file:
            for member in _members(file, state[0]):
                try:
                    _place(member, state[0], keyed, refusals)
                except DataError as error:
                    name = shown(member.name)
                    refusals.append(Refusal(id=name, reason=UNSAFE, detail=error.message))
    except (DataError, *_BROKEN) as error:
        detail = error.message if isinstance(error, DataError) else str(error)
        refusals.append(Refusal(id="", reason=UNREADABLE, detail=detail))
    found: list[Keyed | Refusal] = []
    for entry in keyed.values():
        if entry.picture:
            found.append(entry)
        elif entry.texts or entry.others:
            endings = ", ".join(sorted([*entry.texts, *entry.others]))
            found.append(Refusal(id=entry.key, reason=NO_PICTURE, detail=f"it has {endings}"))
    return (*found, *refusals)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar by their headers, checking that it goes on to its end."""
    if file.read(2) == b"\x1f\x8b":
        raise DataError("the tar is compressed: unpack it with gunzip")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        end = -1
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep every header
            if tar.offset <= end:
                raise DataError(f"the header at byte {member.offset} leads backwards")
            end = tar.offset
            yield member
        at = tar.offset
    file.seek(at)
    if any(file.read(_TAIL)):
        # Without this, a damaged header would look like the end.
        raise DataError(f"what follows byte {at} of {size} is no member: damaged, or two tars")


def _place(
    member: tarfile.TarInfo, size: int, keyed: dict[str, Keyed], refusals: list[Refusal]
) -> None:
    if member.isdir():
        return
    name = safe_name(member.name)
    folder, _, base = name.rpartition("/")
    if is_hidden(base) or is_hidden(name):
        return
    if not member.isreg() or member.issparse():
        raise DataError("a link, a device or a file with holes, not a plain file")
    stem, _, kind = base.partition(".")
    kind = kind.lower()
    key = f"{folder}/{stem}" if folder else stem
    last = kind.rpartition(".")[2]
    span = (member.offset_data, member.size)
    if member.offset_data + member.size > size:
        refusals.append(Refusal(id=key, reason=UNREADABLE, detail=f"{name} is cut short"))
        return
    entry = keyed.setdefault(key, Keyed(key))
    if last in _TEXTS:
        entry.texts[kind] = span
    elif f".{last}" not in PICTURES:
        entry.others.append(kind or "a member without an ending")
    elif not entry.picture or ("." in entry.picture and "." not in kind):
        entry.picture, entry.span = kind, span
    elif "." in entry.picture or "." not in kind:
        # "1.mask.png" beside "1.jpg" is no picture of its own; "1.png" beside it would be.
        detail = f"{name}: the key has a picture already, .{entry.picture}"
        refusals.append(Refusal(id=key, reason=DUPLICATE, detail=detail))
