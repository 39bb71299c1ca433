"""All files below a folder, in an order that never changes, without asking the disk twice."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sanakit.data.samples import Refusal
from sanakit.data.sources.names import (
    FOREIGN,
    PICTURES,
    ending,
    is_hidden,
    path_inside,
    safe_name,
    shown,
)
from sanakit.data.sources.source import FORMAT, UNREADABLE, UNSAFE
from sanakit.data.training_set import SCAN, SET
from sanakit.errors import DataError


@dataclass(frozen=True)
class Listing:
    """``folders``: names of files by folder, both sorted, folders relative with "" for the root.

    ``refusals`` are pictures, and folders, that cannot be used for their name or kind.
    """

    folders: dict[str, list[str]] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def with_ending(self, *endings: str) -> list[str]:
        """Paths of the files with one of the endings, in order."""
        return [
            join(folder, name)
            for folder, names in self.folders.items()
            for name in names
            if ending(name) in endings
        ]

    def seen(self) -> str:
        """What there is, for a message: "12 .mp4, 3 .txt"."""
        counts = Counter(
            ending(name) or "without an ending" for names in self.folders.values() for name in names
        )
        shown_counts = (f"{count} {kind}" for kind, count in counts.most_common(6))
        return shown(", ".join(shown_counts)) or "no files"


def join(folder: str, name: str) -> str:
    """The path of a name in a folder of a listing."""
    return f"{folder}/{name}" if folder else name


def list_folder(root: Path) -> Listing:
    """List the files below ``root``.

    Hidden files are left out, and so are training sets of ours. Links to files below ``root``
    count as files; other links are refused, as are pictures with unsafe names.

    Raises:
        DataError: ``root`` itself cannot be listed.
    """
    listing = Listing()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if not is_hidden(entry.name):
                        _sort_in(root, folder, entry, files, folders, listing.refusals)
        except OSError as error:
            if not folder:
                raise DataError(f"{root} cannot be listed ({error.strerror or error})") from error
            listing.refusals.append(
                Refusal(id=shown(folder), reason=UNREADABLE, detail=str(error.strerror or error))
            )
            continue
        if folder and SET in files and SCAN in folders:
            continue  # what an earlier build made of this very folder is no source
        listing.folders[folder] = sorted(files)
        waiting += [join(folder, name) for name in sorted(folders, reverse=True)]
    return listing


def _sort_in(
    root: Path,
    folder: str,
    entry: os.DirEntry[str],
    files: list[str],
    folders: list[str],
    refusals: list[Refusal],
) -> None:
    path = join(folder, entry.name)
    kind = ending(entry.name)

    def refuse(reason: str, detail: str) -> None:
        refusals.append(Refusal(id=shown(path), reason=reason, detail=detail))

    if entry.is_dir(follow_symlinks=False):
        folders.append(entry.name)
        return
    is_file = entry.is_file(follow_symlinks=False)
    if entry.is_symlink():
        is_folder = entry.is_dir()
        try:
            path_inside(root, path)
        except DataError as error:
            if kind in PICTURES or is_folder:
                refuse(UNSAFE, error.message)
            return
        if is_folder:
            return  # its files are found where they are
        is_file = entry.is_file()
    if not is_file:
        if kind in PICTURES:
            refuse(UNREADABLE, "not a file, or a link to nothing")
        return
    if kind in FOREIGN and kind != ".tar":
        refuse(FORMAT, f"{kind} is not read: store it as JPEG, PNG or WebP")
    elif kind in PICTURES:
        try:
            safe_name(path)
        except DataError as error:
            refuse(UNSAFE, error.message)
            return
    files.append(entry.name)
