"""Tables whose rows name pictures or hold their bytes, one file or several, as a source."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import caption_keys, from_keys
from sanakit.data.sources.names import (
    PICTURES,
    ending,
    listed,
    path_inside,
    safe_name,
    shown,
    without_ending,
)
from sanakit.data.sources.rows import Rows, open_rows
from sanakit.data.sources.source import (
    DUPLICATE,
    UNREADABLE,
    UNSAFE,
    Entry,
    ListSource,
    SourceSettings,
)
from sanakit.errors import DataError

_FILES = listed(
    "file_name filename file image_file file_path filepath image_path img_path path image_name"
    " image img picture photo name"
)
_BYTES = listed("image img picture photo jpg jpeg png webp image_bytes bytes data")
_IDS = listed("id key __key__ uid sample_id image_id")
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_LICENCES = ("licence", "license")
_ORIGINS = ("source", "source_url", "url", "origin")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table by what they are for; "" where there is none.

    ``picture`` holds the bytes of pictures if ``has_bytes``, else names of files.
    """

    picture: str
    has_bytes: bool
    captions: tuple[str, ...]
    id: str
    licence: str
    origin: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that are read for a sample beside its picture."""
        return tuple(name for name in (*self.captions, self.licence, self.origin) if name)


def recognise(rows: Rows, *, reads: bool) -> Columns:
    """Find out what the columns of a table are for; of captions, if they are to be read."""
    texts = [name for name in rows.columns if name not in rows.binary]
    picture = _first(_BYTES, rows.binary) or next(iter(rows.binary), "")
    named = "" if picture else _first(_FILES, texts) or _looks_like_files(rows)
    if not picture and not named:
        urls = [name for name in texts if "url" in name.lower()]
        raise DataError(
            f"{rows.path}: no column holds pictures or names their files"
            f" (columns: {', '.join(rows.columns) or 'none'})",
            hint=f"column {urls[0]!r} has addresses: download them first, with img2dataset for one"
            if urls
            else "name the files in a column file_name",
        )
    rest = [name for name in texts if name != named]
    return Columns(
        picture=picture or named,
        has_bytes=bool(picture),
        captions=tuple(caption_keys(rest)) if reads else (),
        id=_first(_IDS, rest),
        licence=_first(_LICENCES, rest),
        origin=_first(_ORIGINS, rest),
    )


def text_at(row: Mapping[str, Any], column: str) -> str:
    """The text of a row, "" where there is none."""
    value = row.get(column) if column else None
    return value.strip() if isinstance(value, str) else ""


def named_file(root: Path, folder: str, value: Any) -> str:
    """The file that a row of a table in ``folder`` (relative to ``root``) names, safe to join.

    A path that is absolute and below ``root`` counts, so do backslashes as separators and a name
    without its ending.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError("the row names no file")
    name = value.strip().replace("\\", "/")
    base = os.path.abspath(root)
    if name.startswith(base + "/"):
        name = name[len(base) + 1 :]
    elif folder:
        name = f"{folder}/{name}" if not name.startswith("/") else name
    name = safe_name(name)
    ends = ("",) if ending(name) in PICTURES else sorted(PICTURES)
    # A letter with its accent is one sign or two, by the system that wrote the name.
    spellings = dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in _FORMS)))
    found = (
        f"{one}{end}" for end in ends for one in spellings if os.path.isfile(f"{base}/{one}{end}")
    )
    return next(found, name)


def told(
    tables: Sequence[tuple[Rows, Columns]], rows: Iterable[tuple[int, int]]
) -> tuple[list[Caption], str, str]:
    """What ``rows`` (number of the table, of the row) say: captions, licence and origin."""
    found: list[Caption] = []
    licence = origin = ""
    for number, row_number in rows:
        table, columns = tables[number]
        row = next(table.rows(row_number, row_number + 1, columns.texts), "")
        if isinstance(row, dict):
            found += from_keys(row, columns.captions)
            licence = licence or text_at(row, columns.licence)
            origin = origin or text_at(row, columns.origin)
    return found, shown(licence), shown(origin)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str:
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[name] for name in wanted if name in by_name), "")


def _looks_like_files(rows: Rows) -> str:
    row = next(rows.rows(0, 1, rows.columns), None)
    pairs = row.items() if isinstance(row, dict) else ()
    return next(
        (key for key, text in pairs if isinstance(text, str) and ending(text) in PICTURES), ""
    )


class TableSource(ListSource):
    """Rows of tables below ``root``; ``files`` are relative to it and come in this order.

    Rows that name the same file are one sample with all their captions; its id is the file's
    path without ending. A row with bytes has the id of its id column, or its number; with
    several tables the name of its table goes before the number.
    """

    def __init__(
        self, root: Path, files: Sequence[str], *, kind: str, settings: SourceSettings
    ) -> None:
        super().__init__(root, kind, settings)
        self._several = len(files) > 1
        self._files: list[str] = []  # of the tables that have rows
        self._tables: list[tuple[Rows, Columns]] = []
        for file in files:
            path_inside(root, file)  # a list of files may be hostile
            rows = open_rows(root / file)
            if len(rows):
                self._tables.append((rows, recognise(rows, reads=self.captions.reads)))
                self._files.append(file)
        self.entries = list(self._found())
        if not self.entries:
            raise DataError(f"{root / files[0]} has no rows")

    def files_of(self, entries: Sequence[Entry]) -> list[str]:
        """The tables and the files that their rows name."""
        tables = {number for entry in entries for number, _ in entry.rows}
        return sorted({entry.file for entry in entries} | {self._files[n] for n in tables})

    def described(self, entry: Entry) -> Iterator[Sample | Refusal]:
        """The sample with what its rows say."""
        found, licence, origin = told(self._tables, entry.rows)
        sample = self.sample(entry.id, self._place(entry), licence, origin)
        yield from self.captions.applied(sample, found)

    def _found(self) -> Iterator[Entry | Refusal]:
        """All entries, in order of their first rows; ids are looked at, captions are not."""
        seen: dict[str, Entry] = {}
        order: list[Refusal | str] = []
        for number, (rows, columns) in enumerate(self._tables):
            table = self._files[number]
            wanted = (columns.id,) if columns.has_bytes else (columns.picture,)
            for row_number, row in enumerate(rows.rows(0, len(rows), wanted)):
                try:
                    entry = self._entry(number, row_number, row)
                except DataError as error:
                    reason = UNSAFE if error.message.startswith(UNSAFE) else UNREADABLE
                    name = f"{table} row {row_number}"
                    order.append(Refusal(id=name, reason=reason, detail=error.message))
                    continue
                first = seen.get(entry.id)
                if first is None:
                    seen[entry.id] = entry
                    order.append(entry.id)
                elif first.file == entry.file and not columns.has_bytes:
                    seen[entry.id] = Entry(entry.id, entry.file, first.rows + entry.rows)
                else:
                    detail = f"{table} row {row_number}: an earlier row has the same id"
                    order.append(Refusal(id=entry.id, reason=DUPLICATE, detail=detail))
        yield from (seen[entry] if isinstance(entry, str) else entry for entry in order)

    def _entry(self, number: int, row_number: int, row: dict[str, Any] | str) -> Entry:
        if isinstance(row, str):
            raise DataError(row)
        table, columns = self._files[number], self._tables[number][1]
        rows = ((number, row_number),)
        if columns.has_bytes:
            return Entry(self._row_id(table, row_number, row.get(columns.id)), table, rows)
        file = named_file(self.root, table.rpartition("/")[0], row.get(columns.picture))
        return Entry(without_ending(file), file, rows)

    def _place(self, entry: Entry) -> Place:
        number, row_number = entry.rows[0]
        columns = self._tables[number][1]
        if columns.has_bytes:
            return Place(kind="row", file=entry.file, start=row_number, column=columns.picture)
        return Place(kind="file", file=entry.file)

    def _row_id(self, file: str, row_number: int, given: Any) -> str:
        if isinstance(given, (str, int)) and not isinstance(given, bool) and str(given).strip():
            return shown(str(given).strip())
        prefix = f"{without_ending(file)}/" if self._several else ""
        return f"{prefix}{row_number:07d}"
