"""Folders that appear whole or not at all: filled beside the target, then renamed."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sanakit.errors import ConfigError, DataError

MARKS = ("config.json", "model_index.json")


@contextmanager
def replacing_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a folder to fill; on a clean exit it becomes ``path``, on any other it is removed.

    An existing model folder is replaced as a whole if ``force``; until the end it is untouched.

    Raises:
        DataError: as :func:`check_folder`, or the disk refuses.
    """
    check_folder(path, force=force)
    token = secrets.token_hex(6)
    staging, old = path.parent / f".{token}.tmp", path.parent / f".{token}.old"
    try:
        staging.mkdir()
        yield staging
        if path.exists():
            path.rename(old)
        try:
            staging.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error})",
            hint="check the folder's permissions and free space",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_folder(path: Path, *, force: bool) -> None:
    """Say now what :func:`replacing_folder` would refuse.

    Raises:
        DataError: no parent folder; a file; a folder and no ``force``; a folder that holds other
            things than a model, which is never replaced.
    """
    if not path.parent.is_dir():
        raise DataError(
            f"{path}: folder {path.parent} does not exist",
            hint=f"make it first: mkdir -p {path.parent}",
        )
    if path.is_symlink() or path.is_file():
        raise DataError(f"{path} is there and is no folder", hint="name another folder")
    if not path.exists():
        return
    held = sorted(each.name for each in path.iterdir())
    if held and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it as a whole")
    if held and not any(mark in held for mark in MARKS):
        raise DataError(
            f"{path} holds no model but {', '.join(held[:4])}: it is not replaced",
            hint="name another folder",
        )


def check_file(path: Path, *, force: bool) -> None:
    """Say now what writing a file would refuse.

    Raises:
        DataError: no parent folder; a folder of that name; a file and no ``force``.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file", hint="name a file inside it")
    if path.exists() and not force:
        raise DataError(f"{path} is there already", hint="--force replaces it")
    if not path.parent.is_dir():
        raise DataError(
            f"{path}: folder {path.parent} does not exist",
            hint=f"make it first: mkdir -p {path.parent}",
        )


def check_apart(source: Path, target: Path, what: str, *, inside: bool = False) -> None:
    """Make sure that ``target`` neither is nor holds what it is made from, nor lies in it.

    A target may lie ``inside`` where it is one file.

    Raises:
        ConfigError: it does.
    """
    theirs, ours = source.resolve(), target.resolve()
    if theirs == ours:
        raise ConfigError(f"{target}: {what} and OUT are the same", hint="name another OUT")
    if ours in theirs.parents:
        raise ConfigError(
            f"{target}: holds {what} ({source}), replacing it would lose that",
            hint="name another OUT",
        )
    if theirs in ours.parents and theirs.is_dir() and not inside:
        raise ConfigError(f"{target}: lies inside {what} ({source})", hint="name another OUT")


def check_room(path: Path, size: int) -> None:
    """Make sure that the disk of ``path`` has ``size`` bytes left.

    Raises:
        DataError: it has not.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise DataError(
            f"{path}: needs {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left",
            hint="free some, or name another OUT",
        )
