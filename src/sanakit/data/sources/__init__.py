"""Stand-in with the agreed signatures, to be replaced by the real sources."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.errors import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder with pictures and .txt captions."""

    root: Path
    unit_size: int
    kind: str = "folder"

    def _files(self) -> list[Path]:
        return sorted(p for p in self.root.rglob("*") if p.suffix.lower() in ENDINGS)

    def units(self) -> list[str]:
        """Names."""
        return [f"{n:05}" for n in range(-(-len(self._files()) // self.unit_size))]

    def made_from(self, unit: str) -> str:
        """Hash."""
        first = int(unit) * self.unit_size
        text = [
            f"{p}{p.stat().st_size}{p.stat().st_mtime_ns}"
            for p in self._files()[first : first + self.unit_size]
        ]
        return hashlib.sha256("".join(text).encode()).hexdigest()

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """Samples."""
        first = int(unit) * self.unit_size
        for path in self._files()[first : first + self.unit_size]:
            relative = path.relative_to(self.root)
            words = re.sub("[-_0-9]+", " ", path.stem).strip()
            beside = path.with_suffix(".txt")
            captions: tuple[Caption, ...] = ()
            if beside.exists():
                captions = (Caption(text=beside.read_text().strip(), captioner="original"),)
            elif re.search("[a-z]{3}", words) and "img" not in words.lower():
                captions = (Caption(text=words, captioner="file name"),)
            yield Sample(
                id=str(relative.with_suffix("")),
                place=Place(kind="file", file=str(relative)),
                captions=captions,
                source=self.kind,
            )


def open_source(path: Path, *, unit_size: int = 256) -> FolderSource:
    """Open."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder")
    return FolderSource(root=path, unit_size=unit_size)


def read_place(root: Path, place: Place) -> bytes:
    """Bytes."""
    try:
        return (root / place.file).read_bytes()
    except OSError as error:
        raise DataError(f"{root / place.file} cannot be read") from error
