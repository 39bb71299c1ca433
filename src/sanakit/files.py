"""Files that appear whole or not at all: written beside the target, synced, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sanakit.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; on a clean exit it becomes ``path``, on any other it is removed.

    An existing ``path`` is replaced and, until then, untouched.

    Raises:
        DataError: the parent folder is missing, ``path`` is a folder, or the disk refuses.
    """
    folder = path.parent
    if not folder.is_dir():
        raise DataError(
            f"{path}: folder {folder} does not exist", hint=f"make it first: mkdir -p {folder}"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file", hint="name a file inside it")
    # Short and unlike the target: a long target name must not make the temporary one too long.
    temporary = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        # Some writers replace the file by a private one of their own; it gets the user's mode back.
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _sync(folder)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error})",
            hint="check the folder's permissions and free space",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a whole file; a crash, a full disk or Ctrl-C leaves the old one or none.

    Raises:
        DataError: as :func:`replacing`.
    """
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
