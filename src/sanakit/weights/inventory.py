"""What the Hugging Face cache holds of a repository: how much, and whether it is unchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sanakit.errors import DataError, MissingModelError
from sanakit.weights.pins import Listing, digest_of, is_digest, read_pins, repository_folder
from sanakit.weights.snapshot import missing_by_structure


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """One repository on this disk."""

    folder: Path
    bytes: int
    """Of all contents, partial downloads included."""
    commits: tuple[str, ...]
    complete: bool
    """Whether one of the commits has all files that a loader looks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is wrong with one file."""

    file: str
    problem: str


def holding(repository: str) -> Holding | None:
    """Say what is on disk of a repository; None where there is nothing."""
    folder = repository_folder(repository)
    snapshots = _snapshots(folder)
    size = sum(path.lstat().st_size for path in _contents(folder))
    if not snapshots and not size:
        return None
    return Holding(
        folder=folder,
        bytes=size,
        commits=tuple(path.name for path in snapshots),
        complete=any(not missing_by_structure(path) for path in snapshots),
    )


def verify(repository: str) -> tuple[int, list[Finding]]:
    """Hash every file again; give how many were looked at, and what is wrong.

    A file is compared with its pinned digest, and where another program fetched it, with the name
    under which the cache keeps contents, which is their digest. Files that the pinned commit does
    not have, and links that lead out of the repository's own contents, are findings too.

    Raises:
        MissingModelError: nothing of it is on disk. WeightsError: its pins are damaged.
    """
    folder = repository_folder(repository)
    snapshots = _snapshots(folder)
    if not snapshots:
        raise MissingModelError(
            f"{repository}: is not in the local cache", hint=f"sanakit models pull {repository}"
        )
    pins = read_pins(repository)
    findings: list[Finding] = []
    count = 0
    hashed: dict[tuple[Path, str], bool] = {}
    for snapshot in snapshots:
        for path in _files(snapshot):
            count += 1
            name = path.relative_to(snapshot).as_posix()
            listing = pins.listings.get(snapshot.name)
            problem = _problem(path, name, folder, listing, hashed)
            if problem is not None:
                findings.append(Finding(file=f"{snapshot.name[:7]}/{name}", problem=problem))
    return count, findings


def remove(repository: str) -> int:
    """Delete a repository from the cache, for all programs that share it; give the bytes freed.

    Raises:
        MissingModelError: nothing of it is there. DataError: the disk refuses.
    """
    held = holding(repository)
    if held is None:
        raise MissingModelError(
            f"{repository}: is not in the local cache", hint="`sanakit models list` says what is"
        )
    try:
        shutil.rmtree(held.folder)
        shutil.rmtree(held.folder.parent / ".locks" / held.folder.name, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{held.folder}: cannot be removed ({error.strerror or error})") from error
    return held.bytes


def _problem(
    path: Path,
    name: str,
    folder: Path,
    listing: Listing | None,
    hashed: dict[tuple[Path, str], bool],
) -> str | None:
    if listing is not None and name not in listing:
        return "is not in this commit: somebody put it here"
    # One step, not all of them: a content may itself be a link to a store that repositories share.
    target = Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path
    if path.is_symlink() and target.parent != Path(os.path.normpath(folder / "blobs")):
        return f"is a link that leads elsewhere ({target})"
    expected = listing[name].digest if listing is not None else target.name
    if not is_digest(expected):
        return "cannot be checked: neither its pin nor its name tells a digest"
    if not path.is_file():
        return "its content is gone"
    if (target, expected) not in hashed:
        hashed[target, expected] = digest_of(path, expected) == expected
    return None if hashed[target, expected] else "was changed: its digest differs"


def _snapshots(folder: Path) -> list[Path]:
    place = folder / "snapshots"
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _files(snapshot: Path) -> Iterator[Path]:
    for path in sorted(snapshot.rglob("*")):
        if path.is_symlink() or path.is_file():
            yield path


def _contents(folder: Path) -> Iterator[Path]:
    """Every real file below a repository's folder, each once."""
    if folder.is_dir():
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path
