"""Rows of tables as dictionaries, any stretch of them without reading the file from its start."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sanakit.data.sources.arrow import ArrowRows
from sanakit.data.sources.captions import BadCaptions, parsed
from sanakit.data.sources.names import PICTURES, ending
from sanakit.errors import DataError

TEXT_TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".json"))
TABLES = TEXT_TABLES | {".parquet"}
PROBED = 100
"""Rows of a `.jsonl` that are read to learn its keys."""


class Rows(Protocol):
    """A table; ``binary`` are the columns that hold bytes."""

    path: Path
    columns: tuple[str, ...]
    binary: tuple[str, ...]

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any] | str]:
        """Values of ``columns`` in the rows from ``start`` to before ``stop``, as far as there.

        A damaged row is a text that says what is wrong with it.
        """


def open_rows(path: Path) -> Rows:
    """The rows of a table, by the ending of its name.

    Raises:
        DataError: the file is damaged as a whole, or of another kind.
    """
    kind = ending(path.name)
    try:
        if kind in (".csv", ".tsv"):
            return CsvRows(path)
        if kind in (".jsonl", ".ndjson"):
            return JsonlRows(path)
        return JsonRows(path) if kind == ".json" else ArrowRows(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


class _Lines:
    """Lines of a file as text, counting bytes; what is not UTF-8 becomes lone surrogates."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._file = path.open("rb")
        self._file.seek(start)
        self.at = start

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        text = line.decode("utf-8", "surrogateescape")
        text = text.removeprefix("\ufeff") if self.at == 0 else text
        self.at += len(line)
        return text


class CsvRows:
    """A table of comma, semicolon or tab separated values, whose first line names the columns."""

    binary: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        with _Lines(path) as lines:
            first = next(lines, "")
            self._delimiter = max(",;\t", key=first.count)
            header = next(self._reader(iter([first])), [])
            self.columns = tuple(name.strip() for name in header if isinstance(name, str))
            if any(ending(name) in PICTURES for name in self.columns):
                raise DataError(
                    f"{path}: the first line names a picture, and should name the columns",
                    hint="put a line before it, like: file_name,text",
                )
            # Rows are counted by the reader, as line ends inside quotes belong to a value.
            end = lines.at
            for row in self._reader(lines):
                if row:
                    self._starts.append(end)
                end = lines.at

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any] | str]:
        """As :class:`Rows`."""
        left = min(stop, len(self)) - start
        if left <= 0:
            return
        with _Lines(self.path, self._starts[start]) as lines:
            for row in self._reader(lines):
                if not row:
                    continue
                if isinstance(row, str):
                    yield row
                elif len(row) > len(self.columns):
                    yield f"{len(row)} values for {len(self.columns)} columns: is a quote missing?"
                else:
                    pairs = zip(self.columns, row, strict=False)  # a short row lacks its last ones
                    yield {name: value for name, value in pairs if name in columns}
                left -= 1
                if not left:
                    return

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str] | str]:
        reader = csv.reader(lines, delimiter=self._delimiter)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"not CSV ({error})"


class JsonlRows:
    """A table with one JSON object a line."""

    binary: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        keys: dict[str, None] = {}
        start = 0
        with _Lines(path) as lines:
            for line in lines:
                if line.strip():
                    self._starts.append(start)
                    if len(self._starts) <= PROBED:
                        row = _json_row(line)
                        keys.update(dict.fromkeys(row if isinstance(row, dict) else ()))
                start = lines.at
        self.columns = tuple(keys)

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any] | str]:
        """As :class:`Rows`."""
        left = min(stop, len(self)) - start
        if left <= 0:
            return
        with _Lines(self.path, self._starts[start]) as lines:
            for line in lines:
                if line.strip():
                    row = _json_row(line)
                    yield row if isinstance(row, str) else _only(row, columns)
                    left -= 1
                if not left:
                    return


class JsonRows:
    """A JSON file held in memory: a list of objects, {file: text or object}, or COCO's captions."""

    binary: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            value = parsed(path.read_bytes())
        except BadCaptions as error:
            raise DataError(f"{path}: {error.message}", hint=error.hint) from error
        self._rows = _listed(value)
        if self._rows is None:
            raise DataError(
                f"{path} is neither a list of objects nor {{file name: caption}}",
                hint='like [{"file_name": "a.jpg", "text": "a caption"}]',
            )
        keys = [row for row in self._rows if isinstance(row, dict)]
        self.columns = tuple(dict.fromkeys(str(key) for row in keys for key in row))

    def __len__(self) -> int:
        return len(self._rows or ())

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any] | str]:
        """As :class:`Rows`."""
        for row in (self._rows or [])[start:stop]:
            yield _only(row, columns) if isinstance(row, dict) else "not a JSON object"


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return None
    images, annotations = value.get("images"), value.get("annotations")
    if isinstance(images, list) and isinstance(annotations, list):
        texts: dict[Any, list[Any]] = {}
        for note in annotations:
            if isinstance(note, dict) and isinstance(note.get("caption"), str):
                texts.setdefault(str(note.get("image_id")), []).append(note["caption"])
        return [
            {**row, "captions": texts.get(str(row.get("id")), [])}
            for row in images
            if isinstance(row, dict)
        ]
    for key in ("data", "rows", "images", "samples"):
        if isinstance(value.get(key), list):
            return value[key]
    if all(isinstance(item, dict) for item in value.values()):
        return [{"file_name": name, **item} for name, item in value.items()]
    if all(isinstance(item, (str, list)) for item in value.values()):
        return [{"file_name": name, "text": item} for name, item in value.items()]
    return None


def _json_row(line: str) -> dict[str, Any] | str:
    try:
        row = parsed(line)
    except BadCaptions as error:
        return error.message
    return row if isinstance(row, dict) else "not a JSON object"


def _only(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in columns if name in row}
