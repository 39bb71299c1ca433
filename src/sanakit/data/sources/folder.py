"""A folder of pictures as a source, with captions beside them, in a table, or none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import (
    FILE_NAME,
    FOLDER_NAME,
    BadCaptions,
    CaptionPolicy,
    from_json,
    from_text,
    parsed,
)
from sanakit.data.sources.listing import Listing, join
from sanakit.data.sources.names import PICTURES, ending, safe_name, shown, without_ending, words_of
from sanakit.data.sources.places import LARGEST_TEXT, read_inside
from sanakit.data.sources.rows import TABLES, Rows, open_rows
from sanakit.data.sources.source import (
    BAD_CAPTIONS,
    DUPLICATE,
    UNLISTED,
    UNREADABLE,
    file_state,
    unit_names,
)
from sanakit.data.sources.table import Columns, named_file, recognise, told
from sanakit.data.units import fingerprint
from sanakit.errors import DataError

LIST = "meta_data.json"
LARGEST_LIST = 1 << 30
_TEXTS = (".txt", ".caption", ".json")
_TABLE_NAMES = frozenset(("metadata", "captions", "caption", "prompts", "labels", "meta_cap"))
_REPEATS = re.compile(r"\d{1,3}_(.*\w.*)")  # kohya's folders: repeats, then words for what it holds


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a folder: its id, file, files of captions, rows of tables that speak of it."""

    id: str
    file: str
    texts: tuple[str, ...] = ()
    rows: tuple[tuple[int, int], ...] = ()


class FolderSource:
    """The pictures of ``listing``, sorted by id: their path without its ending.

    Captions come from NAME.txt, NAME.caption and NAME.json (or NAME.jpg.txt, NAME.jpg.json), and
    from tables called metadata or captions in the folder of the pictures or above. A folder with
    NVlabs' `meta_data.json` gives the pictures that it lists and no others.
    """

    kind = "folder"

    def __init__(
        self,
        root: Path,
        listing: Listing,
        *,
        captions: CaptionPolicy,
        unit_size: int,
        licence: str,
    ) -> None:
        self.root = root
        self._captions, self._unit_size, self._licence = captions, unit_size, licence
        self._tables: list[tuple[Rows, Columns]] = []
        self._table_files: list[str] = []
        entries: list[Picture | Refusal] = [*listing.refusals]
        pictures = self._pictures(listing, entries)
        if captions.reads:
            self._join_tables(listing, pictures, entries)
        if LIST in listing.folders.get("", ()):
            self._keep_listed(pictures, entries)
        self._bare = not self._tables and not any(p.texts for p in pictures.values())
        self._entries = sorted([*entries, *pictures.values()], key=lambda entry: entry.id)
        self._made_from: dict[str, str] = {}

    def units(self) -> list[str]:
        """Names of the units, in order."""
        return unit_names(len(self._entries), self._unit_size)

    def made_from(self, unit: str) -> str:
        """Hash names, sizes and times of the pictures and of their captions, and the settings."""
        if unit not in self._made_from:
            entries = self._unit(unit)
            names = [name for p in entries if isinstance(p, Picture) for name in (p.file, *p.texts)]
            self._made_from[unit] = fingerprint(
                [self.kind, unit, self._unit_size, self._licence, asdict(self._captions)],
                [(name, *file_state(self.root / name)) for name in (*names, *self._table_files)],
                [asdict(entry) for entry in entries if isinstance(entry, Refusal)],
            )
        return self._made_from[unit]

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples and refusals, in order of their ids."""
        for entry in self._unit(unit):
            if isinstance(entry, Refusal):
                yield entry
                continue
            problems: list[str] = []
            found, licence, origin = told(self._tables, entry.rows)
            for name in entry.texts if self._captions.reads else ():
                try:
                    found += self._from_file(name, without_ending(entry.file).rpartition("/")[2])
                except DataError as error:
                    problems.append(f"{name}: {error.message}")
            sample = Sample(
                id=entry.id,
                place=Place(kind="file", file=entry.file),
                licence=licence or self._licence,
                source=origin or self.root.name,
            )
            found = found or self._from_names(entry)
            yield from self._captions.applied(sample, found, problems)

    def _unit(self, unit: str) -> list[Picture | Refusal]:
        start = int(unit) * self._unit_size
        return self._entries[start : start + self._unit_size]

    def _pictures(self, listing: Listing, entries: list[Picture | Refusal]) -> dict[str, Picture]:
        pictures: dict[str, Picture] = {}
        for folder, names in listing.folders.items():
            texts: dict[str, list[str]] = {}
            for name in names:
                if ending(name) in _TEXTS:
                    texts.setdefault(without_ending(name), []).append(join(folder, name))
            for name in names:
                file = join(folder, name)
                if ending(name) not in PICTURES:
                    continue
                stem = without_ending(name)
                id = without_ending(file)
                beside = (*texts.get(stem, ()), *texts.get(name, ()))
                if id in pictures:
                    detail = f"{file}: {pictures[id].file} has the same name"
                    entries.append(Refusal(id=id, reason=DUPLICATE, detail=detail))
                else:
                    pictures[id] = Picture(id, file, beside)
        return pictures

    def _join_tables(
        self, listing: Listing, pictures: dict[str, Picture], entries: list[Picture | Refusal]
    ) -> None:
        files = {picture.file: picture for picture in pictures.values()}
        rows_of: dict[str, list[tuple[int, int]]] = {}
        beside = {name for picture in pictures.values() for name in picture.texts}
        for file in listing.with_ending(*TABLES):
            folder, _, name = file.rpartition("/")
            if without_ending(name).lower() not in _TABLE_NAMES or file in beside:
                continue
            try:
                rows = open_rows(self.root / file)
                columns = recognise(rows, self._captions)
            except DataError as error:
                if self._captions.columns:
                    raise
                entries.append(Refusal(id=file, reason=BAD_CAPTIONS, detail=error.message))
                continue
            number = len(self._tables)
            self._tables.append((rows, columns))
            self._table_files.append(file)
            for row_number, row in enumerate(rows.rows(0, len(rows), (columns.picture,))):
                try:
                    if isinstance(row, str):
                        raise BadCaptions(row)
                    named = named_file(self.root, folder, row.get(columns.picture))
                    if named not in files:
                        raise DataError(f"names {named}, which is not there")
                    rows_of.setdefault(named, []).append((number, row_number))
                except DataError as error:
                    bad = isinstance(error, BadCaptions)
                    entries.append(
                        Refusal(
                            id=f"{file} row {row_number}",
                            reason=BAD_CAPTIONS if bad else UNREADABLE,
                            detail=error.message,
                        )
                    )
        for named, found in rows_of.items():
            picture = files[named]
            pictures[picture.id] = Picture(picture.id, named, picture.texts, tuple(found))

    def _keep_listed(self, pictures: dict[str, Picture], entries: list[Picture | Refusal]) -> None:
        """Keep what NVlabs' list of pictures names, with or without endings."""
        try:
            names = parsed(read_inside(self.root, LIST, limit=LARGEST_LIST))["img_names"]
            wanted = [safe_name(str(name)) for name in names]
        except (KeyError, TypeError):
            return  # another program's file of that name
        ids = [without_ending(name) if ending(name) in PICTURES else name for name in wanted]
        for name, id in zip(wanted, ids, strict=True):
            if id not in pictures:
                detail = f"{LIST} lists it, and it is not there"
                entries.append(Refusal(id=shown(name), reason=UNREADABLE, detail=detail))
        unlisted = sorted(pictures.keys() - set(ids))
        for id in unlisted:
            detail = f"{LIST} does not list it"
            entries.append(Refusal(id=pictures.pop(id).file, reason=UNLISTED, detail=detail))

    def _from_file(self, name: str, key: str) -> list[Caption]:
        data = read_inside(self.root, name, limit=LARGEST_TEXT)
        if ending(name) == ".json":
            return from_json(parsed(data), self._captions, key=key)
        return from_text(data, self._captions)

    def _from_names(self, picture: Picture) -> list[Caption]:
        if not self._captions.file_names:
            return []
        folder = picture.file.rpartition("/")[0].rpartition("/")[2]
        repeated = _REPEATS.fullmatch(folder)
        if repeated:
            words = " ".join(repeated[1].replace("_", " ").split())
            return [Caption(text=words, captioner=FOLDER_NAME)]
        return [Caption(text=words_of(picture.file), captioner=FILE_NAME)] if self._bare else []
