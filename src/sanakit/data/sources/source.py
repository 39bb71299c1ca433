"""What every source gives, whatever its layout: units of samples, in an order that never changes.

A source knows places and captions; it decodes no picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sanakit.data.samples import Place, Refusal, Sample
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.units import fingerprint

# Reasons of the refusals that sources make; `data/images/decode.py` has those of pictures.
DUPLICATE, UNREADABLE, UNSAFE = "duplicate key", "unreadable", "unsafe name"
NO_PICTURE, FORMAT, UNLISTED = "no picture", "unsupported format", "not listed"
# Of captions, and in the hash of every unit: without them sets would be scanned once more.
_ONCE_SETTINGS = {"columns": [], "lines": "each", "file_names": True}


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """What is the same for all sources: captions, the most samples of a unit, the usual licence."""

    captions: CaptionPolicy = field(default_factory=CaptionPolicy)
    unit_size: int = 256
    licence: str = ""


class Source(ABC):
    """Pictures with what is known of them, below the folder ``root``.

    ``kind`` is "folder", "table", "hugging-face", "webdataset" or "wids". Opening the same files
    again, in any process, gives the same units.
    """

    def __init__(self, root: Path, kind: str, settings: SourceSettings) -> None:
        self.root, self.kind, self.settings = root, kind, settings
        self.captions = settings.captions
        self._made_from: dict[str, str] = {}

    @abstractmethod
    def units(self) -> list[str]:
        """Names of the units, sorted: a unit has at most ``unit_size`` samples."""

    @abstractmethod
    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples in order; what is wrong with one becomes a refusal beside it.

        A refusal with the reason "bad captions" keeps captions out, not their picture.
        """

    @abstractmethod
    def state(self, unit: str) -> Sequence[Any]:
        """What identifies the unit's input, as JSON values."""

    def made_from(self, unit: str) -> str:
        """A hash that changes when files of the unit do: their names, sizes, times, settings."""
        if unit not in self._made_from:
            own = self.settings
            captions = {**asdict(own.captions), **_ONCE_SETTINGS}
            known = [self.kind, unit, own.unit_size, own.licence, captions]
            self._made_from[unit] = fingerprint(known, *self.state(unit))
        return self._made_from[unit]

    def states_of(self, names: Iterable[str]) -> list[tuple[str, int, int]]:
        """Names of files with their sizes and times."""
        return [(name, *file_state(self.root / name)) for name in names]

    def sample(self, identity: str, place: Place, licence: str = "", origin: str = "") -> Sample:
        """A sample without captions."""
        return Sample(
            id=identity,
            place=place,
            licence=licence or self.settings.licence,
            source=origin or self.root.name,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture of a list: its id, the file that it is or is in, and what speaks of it.

    ``rows`` are numbers of tables and of their rows, ``texts`` files of captions.
    """

    id: str
    file: str
    rows: tuple[tuple[int, int], ...] = ()
    texts: tuple[str, ...] = ()


class ListSource(Source):
    """A source that knows all its pictures from the start, and cuts their list into units."""

    entries: Sequence[Entry | Refusal] = ()

    def units(self) -> list[str]:
        """Names of the units, in order, zero-padded."""
        count = -(-len(self.entries) // self.settings.unit_size)
        width = max(5, len(str(count - 1)))
        return [f"{unit:0{width}d}" for unit in range(count)]

    def state(self, unit: str) -> Sequence[Any]:
        """The states of the unit's files, and its refusals."""
        entries = self._unit(unit)
        files = self.files_of([one for one in entries if isinstance(one, Entry)])
        return self.states_of(files), [asdict(one) for one in entries if isinstance(one, Refusal)]

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples and refusals, in order."""
        for entry in self._unit(unit):
            if isinstance(entry, Refusal):
                yield entry
            else:
                yield from self.described(entry)

    @abstractmethod
    def files_of(self, entries: Sequence[Entry]) -> Iterable[str]:
        """All files that decide what is read of some entries."""

    @abstractmethod
    def described(self, entry: Entry) -> Iterator[Sample | Refusal]:
        """The sample of an entry with its captions, and refusals of what is wrong with those."""

    def _unit(self, unit: str) -> Sequence[Entry | Refusal]:
        size = self.settings.unit_size
        return self.entries[int(unit) * size : (int(unit) + 1) * size]


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; (-1, -1) where no file is."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
