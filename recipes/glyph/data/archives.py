"""Reads members of .tgz and .deb archives in memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sanakit.errors import DataError

AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60  # bytes: name 16, times and owners 32, size 10, end 2


class _Part(io.RawIOBase):
    """``size`` bytes of a file from where it stands, as a file of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _open_deb(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    """The data archive inside a Debian package, which is an ar archive (deb(5), ar(5)).

    Raises:
        tarfile.ReadError: it is no Debian package, or its data is packed in a way not known here.
    """
    if file.read(len(AR_MAGIC)) != AR_MAGIC:
        raise tarfile.ReadError("it does not begin as an ar archive does")
    while len(header := file.read(AR_HEADER)) == AR_HEADER:
        name, size = header[:16].decode("latin-1").strip(" /"), header[48:58].strip()
        if not size.isdigit() or header[58:] != b"`\n":
            raise tarfile.ReadError("a header of the ar archive is damaged")
        if name.startswith("data.tar"):
            if file.tell() + int(size) > os.fstat(file.fileno()).st_size:
                raise tarfile.ReadError("it is cut short")
            packing = name.removeprefix("data.tar").removeprefix(".")
            if packing not in ("", "gz", "xz", "bz2"):
                raise tarfile.ReadError(f"its data is packed as {packing}, not gz or xz")
            part = io.BufferedReader(_Part(file, int(size)), 1 << 20)
            with tarfile.open(fileobj=part, mode=f"r|{packing}") as tar:  # type: ignore[call-overload]
                yield tar
            return
        file.seek(int(size) + int(size) % 2, io.SEEK_CUR)
    raise tarfile.ReadError("it holds no data.tar")


@contextmanager
def _open(archive: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix == ".deb":
        with archive.open("rb") as file, _open_deb(file) as tar:
            yield tar
    else:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar


def each_member(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The regular files of an archive whose name ``wanted`` accepts, one at a time, in its order.

    The kind of archive is known by its ending, .tgz or .deb; names in a .deb lose their "./".
    A hostile name has nowhere to go, as nothing is unpacked; links and devices are passed over.

    Raises:
        DataError: the file is no readable archive of its kind.
    """
    try:
        with _open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isreg() and wanted(name):
                    file = tar.extractfile(member)
                    if file is not None:
                        yield name, file.read()
    except (tarfile.TarError, lzma.LZMAError, OSError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be read as a {archive.suffix}: {error}",
            hint="delete it and fetch it again",
        ) from error


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The content of all regular files of an archive whose name ``wanted`` accepts, by name.

    Raises:
        DataError: the file is no readable archive of its kind.
    """
    return dict(each_member(archive, wanted))
