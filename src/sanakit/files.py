"""Files that appear whole or not at all, their digests, and the folder of those made again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from sanakit.errors import ConfigError, DataError, MissingModelError
from sanakit.untrusted import open_file, parse_json, read_file

HINT = "check the folder's permissions and free space"


@contextmanager
def disk_errors(path: Path, *, hint: str = HINT) -> Iterator[None]:
    """Turn what a disk refuses into a :class:`DataError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be written ({reason})", hint=hint) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; on a clean exit it becomes ``path``, on any other it is removed.

    An existing ``path`` is replaced and, until then, untouched.

    Raises:
        DataError: the parent folder is missing, ``path`` is a folder, or the disk refuses.
    """
    check_parent(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file", hint="name a file inside it")
    temporary = _beside(path)
    try:
        with disk_errors(path):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            # Some writers replace the file by a private one of their own; it gets its mode back.
            temporary.chmod(mode)
            sync(temporary)
            os.replace(temporary, path)
            if os.name == "posix":
                sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; on a clean exit it becomes ``path``, on any other it is removed.

    An existing folder is replaced as a whole; until the end it is untouched. One that a kill caught
    between its two renames comes back with the next call.

    Raises:
        OSError: the disk refuses.
    """
    staging = _beside(path)
    old = path.with_name(f".{sha256_of(path.name)[:12]}.old")
    _settle(path, old)
    try:
        staging.mkdir()
        yield staging
        if path.exists():
            path.rename(old)
        os.replace(staging, path)
    finally:
        _settle(path, old)
        shutil.rmtree(staging, ignore_errors=True)


def _settle(path: Path, old: Path) -> None:
    """Take the old folder back where there is no new one, else remove it."""
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def discard_folder(folder: Path) -> None:
    """Remove a folder; a kill in the midst of it leaves no half under its name."""
    doomed = folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a whole file; a crash, a full disk or Ctrl-C leaves the old one or none.

    Raises:
        DataError: as :func:`replacing`.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a value as JSON and a line end, as :func:`write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=indent) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that others wrote.

    Raises:
        MissingModelError: no such file. ConfigError: not JSON, or not an object.
    """
    try:
        values = parse_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = path.parent
        held = listed(names_in(folder)) if folder.is_dir() else "not there"
        raise MissingModelError(
            f"{path}: no such file", hint=f"what the folder holds: {held}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}, not an object")
    return values


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def listed(names: list[str], most: int = 6) -> str:
    """Say what a folder holds, in a few words."""
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sha256_of(content: Path | bytes | memoryview | str) -> str:
    """The SHA-256 of a file (a ``Path``), of bytes or of a text, as 64 hexadecimal digits."""
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with open_file(content) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def expanded(path: str | Path) -> Path:
    """A path with ``~`` replaced by the home folder that it means.

    Raises:
        ConfigError: there is none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise ConfigError(
            f"{path}: {user} has no home folder", hint="write the path out"
        ) from error


def cache_folder() -> Path | None:
    """Say where files are kept that can be made again at any time; None: nowhere.

    ``SANAKIT_CACHE`` names the folder, or is ``off`` (a folder of that name is ``./off``); without
    it the folder is ``sanakit`` in the platform's own place, on Linux ``~/.cache``.
    """
    chosen = os.environ.get("SANAKIT_CACHE", "")
    if chosen.strip().lower() == "off":
        return None
    try:
        return Path(chosen or user_cache_path("sanakit", appauthor=False)).expanduser().absolute()
    except RuntimeError:  # a user without a home
        return None


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_parent(path: Path) -> None:
    """Make sure that the folder in which ``path`` is to be exists.

    Raises:
        DataError: it does not.
    """
    if not path.parent.is_dir():
        raise DataError(
            f"{path}: folder {path.parent} does not exist",
            hint=f"make it first: mkdir -p {path.parent}",
        )


def check_room(folder: Path, needed: int, *, what: object, hint: str) -> None:
    """Make sure that the disk of a folder, which need not exist yet, has so many bytes left.

    Raises:
        DataError: it has not.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"{what}: needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free",
            hint=hint,
        )


def _beside(path: Path) -> Path:
    """Short and unlike the target: a long target name must not make the temporary one too long."""
    _clear_abandoned(path.parent)
    return path.parent / f".{_machine()}-{os.getpid()}-{secrets.token_hex(6)}.tmp"


@cache
def _machine() -> str:
    return sha256_of(platform.node())[:6]


@cache
def _clear_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that were killed left in a folder; once a process."""
    import psutil  # noqa: PLC0415  half of this module's users write nothing

    try:
        names = os.listdir(folder)
    except OSError:  # the writer's own error says it better
        return
    for name in names:
        left = re.fullmatch(rf"\.{_machine()}-(\d{{1,9}})-[0-9a-f]{{12}}\.tmp", name)
        if left is None or psutil.pid_exists(int(left[1])):
            continue
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
