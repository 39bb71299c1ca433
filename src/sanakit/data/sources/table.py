"""Tables whose rows name pictures or hold their bytes, one file or several, as a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sanakit.data.samples import Place, Refusal, Sample
from sanakit.data.sources.captions import CaptionPolicy
from sanakit.data.sources.columns import Columns, named_file, recognise, told
from sanakit.data.sources.names import path_inside, shown, without_ending
from sanakit.data.sources.rows import Rows, open_rows
from sanakit.data.sources.source import (
    DUPLICATE,
    UNREADABLE,
    UNSAFE,
    file_state,
    unit_names,
)
from sanakit.data.stages import fingerprint
from sanakit.errors import DataError


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of a table: its id, the file it is or is in, the rows that speak of it."""

    id: str
    file: str
    rows: tuple[tuple[int, int], ...]  # number of the table, number of the row


class TableSource:
    """Rows of tables below ``root``; ``files`` are relative to it and come in this order.

    Rows that name the same file are one sample with all their captions; its id is the file's
    path without ending. A row with bytes has the id of its id column, or its number; with
    several tables the name of its table goes before the number.

    Raises:
        DataError: a table is damaged as a whole or says nothing of pictures.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        *,
        kind: str,
        captions: CaptionPolicy,
        unit_size: int,
        licence: str,
    ) -> None:
        self.root, self.kind = root, kind
        self._captions, self._several = captions, len(files) > 1
        self._files: list[str] = []  # of the tables that have rows
        self._unit_size, self._licence = unit_size, licence
        self._tables: list[tuple[Rows, Columns]] = []
        for file in files:
            path_inside(root, file)  # a list of files may be hostile
            rows = open_rows(root / file)
            if len(rows):
                self._tables.append((rows, recognise(rows, captions)))
                self._files.append(file)
        self._entries = list(self._found())
        if not self._entries:
            raise DataError(f"{root / files[0]} has no rows")
        self._made_from: dict[str, str] = {}

    def units(self) -> list[str]:
        """Names of the units, in order."""
        return unit_names(len(self._entries), self._unit_size)

    def made_from(self, unit: str) -> str:
        """Hash the tables' and the named pictures' sizes and times, and the settings."""
        if unit not in self._made_from:
            entries = [entry for entry in self._unit(unit) if isinstance(entry, Entry)]
            tables = {number for entry in entries for number, _ in entry.rows}
            files = {entry.file for entry in entries} | {self._files[number] for number in tables}
            self._made_from[unit] = fingerprint(
                [self.kind, unit, self._unit_size, self._licence, asdict(self._captions)],
                [(file, *file_state(self.root / file)) for file in sorted(files)],
                [asdict(entry) for entry in self._unit(unit) if isinstance(entry, Refusal)],
            )
        return self._made_from[unit]

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples and refusals, in order of the rows."""
        for entry in self._unit(unit):
            if isinstance(entry, Refusal):
                yield entry
                continue
            found, licence, origin = told(self._tables, entry.rows)
            sample = Sample(
                id=entry.id,
                place=self._place(entry),
                licence=licence or self._licence,
                source=origin or self.root.name,
            )
            yield from self._captions.applied(sample, found)

    def _unit(self, unit: str) -> list[Entry | Refusal]:
        start = int(unit) * self._unit_size
        return self._entries[start : start + self._unit_size]

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
