"""What a folder of a batch holds: `manifest.jsonl`, one line a picture, written as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sanakit.files import disk_errors, write_atomically
from sanakit.untrusted import parse_json, read_file

NAME = "manifest.jsonl"
HASHES = ("model_hash", "lora_hash", "decoder_hash")
"""Settings that tell weights from others of the same name."""


class Manifest:
    """The pictures of a folder by their files' names; one that was changed or is gone has none."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier run wrote, as far as it is still so."""
        self.folder, self.path = folder, folder / NAME
        self._records = {
            name: record
            for name, record in _read(self.path).items()
            if _size(folder / name) == record.get("bytes")
        }

    def begin(self, files: Collection[str]) -> None:
        """Write anew what was read, without the files that are to be drawn.

        A last line that a kill cut off goes, too, and so do pictures that failed.

        Raises:
            DataError: the disk refuses.
        """
        kept = [record for name, record in self._records.items() if name not in files]
        write_atomically(self.path, "".join(json.dumps(one) + "\n" for one in kept).encode())

    def holds(self, file: str, key: str, hashes: Mapping[str, Any]) -> bool:
        """Whether a file is there as ``key`` asks, by weights of these hashes; None is unknown."""
        record = self._records.get(file, {})
        then = record.get("settings", {})
        same = all(
            None in (then.get(name), hashes.get(name)) or then[name] == hashes[name]
            for name in HASHES
        )
        return record.get("key") == key and same

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a line of a picture, or of one that failed; it is on the disk when this returns."""
        with disk_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each file; what is no line of ours, such as a torn one, is passed over."""
    try:
        text = read_file(path).decode("utf-8", "replace")
    except (OSError, ValueError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in text.split("\n"):
        try:
            record = parse_json(line)
            found[record["file"]] = {**record, "settings": dict(record["settings"])}
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None
