"""A folder that one process works in at a time; who is there is told by name and number."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from sanakit.errors import ConfigError, DataError
from sanakit.files import disk_errors

LOCK, HOLDER = ".lock", ".in-use-by.json"
_DYING_SECONDS = 3.0


@contextmanager
def in_use(folder: Path, *, by: str) -> Iterator[None]:
    """Keep a folder to this process within the block; the same process may enter again.

    ``by`` is what the other one is told. The system frees the lock of a process that is killed;
    its children may hold it for a moment longer.

    Raises:
        ConfigError: another process works in the folder. DataError: the disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, is_singleton=True)
    note = folder / HOLDER
    try:
        lock.acquire(timeout=0 if _alive(note) else _DYING_SECONDS)
    except Timeout:
        raise ConfigError(
            f"{folder} is in use by {_holder(note) or 'another process'}",
            hint="wait until it has ended, or name another folder",
        ) from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        if lock.lock_counter == 1:
            with disk_errors(folder):
                note.write_text(json.dumps({"pid": os.getpid(), "name": by}), encoding="utf-8")
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    """The process that a lock's note names; "" where it says nothing."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        return f"process {int(found['pid'])} ({found['name']})"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""


def _alive(note: Path) -> bool:
    """Whether the process that a lock's note names is there on this machine."""
    try:
        return bool(psutil.pid_exists(int(json.loads(note.read_text(encoding="utf-8"))["pid"])))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
