"""Rows of tables as dictionaries, any stretch of them without reading the file from its start."""

from __future__ import annotations

import csv
import importlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from sanakit.data.sources.arrow_messages import unpacked_by_its_word
from sanakit.data.sources.captions import BadCaptions, parsed
from sanakit.data.sources.names import PICTURES, ending
from sanakit.data.sources.parquet_pages import Chunk, chunks_of, unpacked_by_pages
from sanakit.data.sources.source import file_state
from sanakit.errors import DataError
from sanakit.untrusted import open_file, read_file

KEPT = 1 << 28
"""Bytes of pictures of parquet files that stay decoded, beside those of the last row group."""
UNPACKED = 1 << 29
"""Bytes that a row group may unpack to beyond the size of its file."""
LARGEST_RATIO = 100
"""Sizes of a file that its row groups may unpack to in all, beyond that: no pictures or captions
are packed so well."""
FEW_ROWS = 100_000
"""Rows that a file may have beyond the number of its bytes."""
MOST_AT_ONCE = 256
SMALLER_GROUPS = "write it again in smaller row groups: row_group_size=256"
ARROW_FILE = b"ARROW1"
LARGEST_GROUP = 1 << 32
"""Bytes of a column in a row group of parquet: it is decoded whole, so more cannot be held."""

State: TypeAlias = tuple[int, int]


class ArrowRows:
    """The rows of one parquet or Arrow file (`.arrow`: what `save_to_disk` of `datasets` writes).

    ``binary`` are the columns that hold bytes; ``rows`` never gives those.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = _open(path, file_state(path))
        schema = file.schema
        self.columns: tuple[str, ...] = tuple(schema.names)
        self.binary = tuple(name for name in schema.names if _holds_bytes(schema.field(name).type))
        self._starts = file.starts

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The values of ``columns`` in the rows from ``start`` to before ``stop``.

        Text that is not UTF-8 has lone surrogates for its bytes.
        """
        wanted = tuple(name for name in self.columns if name in columns and name not in self.binary)
        for group, first in enumerate(self._starts[:-1]):
            low, high = max(first, start), min(self._starts[group + 1], stop)
            if low < high and not wanted:
                yield from ({} for _ in range(low, high))
            elif low < high:
                with _reading(self.path):
                    table = _group(self.path, file_state(self.path), group, wanted)
                    table = table.slice(low - first, high - low)
                    yield from _values(_bounded(table.to_batches(), self.path, group)[0])


def read_cell(path: Path, row: int, column: str) -> bytes | str:
    """The bytes of a picture, or the name of its file where the row names one instead.

    Raises:
        DataError: there is no such row or column, it is empty, or the file is damaged.
    """
    state = file_state(path)
    file = _open(path, state)
    if column not in file.schema.names or not 0 <= row < file.starts[-1]:
        raise DataError(
            f"{path.name} has no row {row} with a column {column!r}",
            hint="it changed: run `sanakit data scan` again",
        )
    group = next(number for number, stop in enumerate(file.starts[1:]) if row < stop)
    with _reading(path):
        table = _group(path, state, group, (column,))
        value = table.column(column)[row - file.starts[group]].as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (bytes, str)) or not value:
        raise DataError(f"{path.name}: row {row} holds no picture in {column!r}")
    return value


@dataclass(frozen=True)
class _Opened:
    """A file's schema, the first row of each group and of what follows, and how groups are read."""

    schema: Any
    starts: list[int]
    read: Callable[[int, Sequence[str]], Any]
    keep: bool  # what was read, as it was decoded


@lru_cache(maxsize=64)
def _open(path: Path, state: State) -> _Opened:
    """The file, opened once while its size and time, ``state``, stay the same."""
    with _reading(path):
        open_file(path).close()  # Arrow would wait at a pipe
        return (_parquet if path.suffix.lower() == ".parquet" else _mapped)(path)


def _parquet(path: Path) -> _Opened:
    """A parquet file; its row groups are compressed whole and so decoded whole."""
    file = _pyarrow(".parquet").ParquetFile(path)
    starts = [0]
    _check_rows(path, file.metadata.num_rows)
    groups = chunks_of(path)
    if len(groups) != file.metadata.num_row_groups:
        raise DataError(f"{path}: its row groups are not those that it lists")
    for number, chunks in enumerate(groups):
        starts.append(starts[-1] + file.metadata.row_group(number).num_rows)
        largest = max((chunk.unpacked for chunk in chunks), default=0)
        if largest > LARGEST_GROUP:
            raise DataError(
                f"{path}: row group {number} has a column of {largest} bytes, which cannot"
                f" be decoded at once (at most {LARGEST_GROUP})",
                hint=SMALLER_GROUPS,
            )

    size = path.stat().st_size
    seen: set[tuple[int, tuple[str, ...]]] = set()
    in_all = 0

    def read(group: int, columns: Sequence[str]) -> Any:
        nonlocal in_all
        wanted = [chunk for chunk in groups[group] if _is_of(chunk, columns)]
        sizes = unpacked_by_pages(path, wanted)
        if sum(sizes) > (most := size + UNPACKED):
            raise _too_much(path, f"row group {group}", most)
        part = group, tuple(columns)
        if part not in seen and in_all > LARGEST_RATIO * size + UNPACKED:
            raise DataError(
                f"{path}: is {size} bytes, and what was read of it unpacks to {in_all}",
                hint="no pictures or captions are packed so well; check where it comes from",
            )
        at_once = max(1, min(MOST_AT_ONCE, UNPACKED // max(1, *sizes)))
        batches = file.iter_batches(at_once, [group], list(columns), use_threads=False)
        table, unpacked = _bounded(batches, path, group)
        if part not in seen:  # groups are read again and again
            seen.add(part)
            in_all += max(unpacked, sum(sizes))
        return table

    return _Opened(file.schema_arrow, starts, read, keep=True)


def _mapped(path: Path) -> _Opened:
    """An Arrow file mapped into memory: any row is read by itself.

    What is compressed is unpacked here, all of it, unless it says that it is too much.
    """
    ipc = _pyarrow(".ipc")
    mapped = _pyarrow("").memory_map(str(path))
    whole = mapped.read(len(ARROW_FILE)) == ARROW_FILE
    start = 8 if whole else 0  # behind the mark a file is a stream, with a list of batches after it
    mapped.seek(start)
    most = path.stat().st_size + UNPACKED
    if sum(map(unpacked_by_its_word, ipc.MessageReader.open_stream(mapped))) > most:
        raise DataError(
            f"{path}: unpacks to more than {most} bytes",
            hint="write it again without compression: it is then read without unpacking",
        )
    mapped.seek(start)
    stream = ipc.open_stream(mapped)
    batches = list(stream)
    if whole and ipc.open_file(mapped).num_record_batches != len(batches):
        raise DataError(f"{path}: its batches are not those that it lists")
    starts = [0, *accumulate(batch.num_rows for batch in batches)]
    _check_rows(path, starts[-1])

    def read(group: int, columns: Sequence[str]) -> Any:
        return _pyarrow("").Table.from_batches([batches[group]]).select(list(columns))

    return _Opened(stream.schema, starts, read, keep=False)


def _is_of(chunk: Chunk, columns: Sequence[str]) -> bool:
    return chunk.column[0] in columns


def _check_rows(path: Path, rows: int) -> None:
    size = path.stat().st_size
    if rows > size + FEW_ROWS:
        raise DataError(f"{path}: {rows} rows in {size} bytes cannot be pictures")


def _bounded(batches: Iterable[Any], path: Path, group: int) -> tuple[Any, int]:
    """The table of batches, and bytes of their values: as many as their file may unpack to.

    A value that is stored once may stand in every row: what a file claims and what it unpacks to
    are bounded by its own size.
    """
    most = path.stat().st_size + UNPACKED
    kept, unpacked = [], 0
    for batch in batches:
        kept.append(batch)
        unpacked += sum(map(_unpacked, batch.columns))
        if unpacked > most:
            raise _too_much(path, f"row group {group}", most)
    return _pyarrow("").Table.from_batches(kept), unpacked


def _too_much(path: Path, part: str, most: int) -> DataError:
    return DataError(f"{path}: {part} unpacks to more than {most} bytes", hint=SMALLER_GROUPS)


def _unpacked(values: Any) -> int:
    """Bytes of an Arrow array where each row has a copy of what is stored once, and a place."""
    kind, places = values.type, 8 * len(values)
    types, compute = _pyarrow(".types"), _pyarrow(".compute")
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        lengths = compute.binary_length(values.dictionary)
        return places + int(compute.sum(lengths.take(values.indices)).as_py() or 0)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return places + _unpacked(values.flatten())
    if types.is_map(kind):
        return places + _unpacked(values.keys) + _unpacked(values.items)
    if types.is_struct(kind):
        return places + sum(map(_unpacked, values.flatten()))
    if types.is_run_end_encoded(kind) or types.is_string_view(kind) or types.is_binary_view(kind):
        raise DataError(f"values of the type {kind} are not read", hint="cast them to plain ones")
    return places + int(values.nbytes)


_decoded: OrderedDict[tuple[Path, State, int, tuple[str, ...]], Any] = OrderedDict()


def _group(path: Path, state: State, group: int, columns: tuple[str, ...]) -> Any:
    """Columns of a group; what was decoded last is kept, up to ``KEPT`` bytes."""
    file = _open(path, state)
    if not file.keep:
        return file.read(group, columns)
    key = (path, state, group, columns)
    if key not in _decoded:
        try:
            _decoded[key] = file.read(group, columns)
        except DataError as error:
            _decoded[key] = error  # each of its rows asks for it
    _decoded.move_to_end(key)
    while len(_decoded) > 1 and sum(getattr(one, "nbytes", 0) for one in _decoded.values()) > KEPT:
        _decoded.popitem(last=False)
    if isinstance(_decoded[key], DataError):
        raise _decoded[key]
    return _decoded[key]


def _values(table: Any) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        names = [name for name in table.column_names if _is_text(table.schema.field(name).type)]
        for name in names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table.column(name).cast("binary"))
        return [
            {
                name: value.decode("utf-8", "surrogateescape")
                if isinstance(value, bytes)
                else value
                for name, value in row.items()
            }
            for row in table.to_pylist()
        ]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, _pyarrow("").ArrowException, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} cannot be read: damaged or cut short ({error})") from error


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow{module}")
    except ImportError as error:
        raise DataError(
            "reading parquet files and Hugging Face datasets needs the package pyarrow",
            hint='pip install "sanakit[data]"',
        ) from error


def _holds_bytes(kind: Any) -> bool:
    types = _pyarrow(".types")
    if types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    types = _pyarrow(".types")
    return bool(types.is_string(kind) or types.is_large_string(kind))


TEXT_TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".json"))
TABLES = TEXT_TABLES | {".parquet"}
LARGEST_LINE = 1 << 26
"""Bytes of a line of a table."""
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
        self._file = open_file(path)
        self._file.seek(start)
        self.at = start

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(LARGEST_LINE)
        if not line:
            raise StopIteration
        if len(line) == LARGEST_LINE and not line.endswith(b"\n"):
            raise DataError(f"{self._file.name}: a line is longer than {LARGEST_LINE} bytes")
        text = line.decode("utf-8", "surrogateescape")
        text = text.removeprefix("\ufeff") if self.at == 0 else text
        self.at += len(line)
        return text


class _LineRows:
    """A table whose rows begin at lines; where they begin is found once."""

    binary: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        with _Lines(path) as lines:
            self._begin(lines)
            end = lines.at
            for record in self._records(lines):
                if record:
                    self._starts.append(end)
                end = lines.at

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[dict[str, Any] | str]:
        """As :class:`Rows`."""
        if start >= len(self):
            return
        with _Lines(self.path, self._starts[start]) as lines:
            records = filter(None, self._records(lines))
            for record in islice(records, max(0, min(stop, len(self)) - start)):
                row = self._row(record)
                yield row if isinstance(row, str) else _only(row, columns)

    def _begin(self, lines: _Lines) -> None:
        """Read what comes before the rows."""

    def _records(self, lines: Iterator[str]) -> Iterator[Any]:
        """The rows that begin in lines, unparsed as far as that can be; what is empty is none."""
        return (line.strip() for line in lines)

    def _row(self, record: Any) -> dict[str, Any] | str:
        raise NotImplementedError


class CsvRows(_LineRows):
    """A table of comma, semicolon or tab separated values, whose first line names the columns."""

    def _begin(self, lines: _Lines) -> None:
        first = next(lines, "")
        self._delimiter = max(",;\t", key=first.count)
        header = next(self._records(iter([first])), [])
        self.columns = tuple(name.strip() for name in header)
        if any(ending(name) in PICTURES for name in self.columns):
            raise DataError(
                f"{self.path}: the first line names a picture, and should name the columns",
                hint="put a line before it, like: file_name,text",
            )

    def _records(self, lines: Iterator[str]) -> Iterator[list[str] | str]:
        """Rows as the reader counts them: line ends inside quotes belong to a value."""
        reader = csv.reader(lines, delimiter=self._delimiter)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"not CSV ({error})"

    def _row(self, record: list[str] | str) -> dict[str, Any] | str:
        if isinstance(record, str):
            return record
        if len(record) > len(self.columns):
            return f"{len(record)} values for {len(self.columns)} columns: is a quote missing?"
        return dict(zip(self.columns, record, strict=False))  # a short row lacks its last ones


class JsonlRows(_LineRows):
    """A table with one JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        keys: dict[str, None] = {}
        with _Lines(path) as lines:
            for line in islice(filter(None, self._records(lines)), PROBED):
                row = self._row(line)
                keys.update(dict.fromkeys(row if isinstance(row, dict) else ()))
        self.columns = tuple(keys)

    def _row(self, record: str) -> dict[str, Any] | str:
        try:
            row = parsed(record)
        except BadCaptions as error:
            return error.message
        return row if isinstance(row, dict) else "not a JSON object"


class JsonRows:
    """A JSON file held in memory: a list of objects, {file: text or object}, or COCO's captions."""

    binary: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            value = parsed(read_file(path))
        except BadCaptions as error:
            raise DataError(f"{path}: {error.message}", hint=error.hint) from error
        except ValueError as error:
            raise DataError(
                f"{path}: {error}", hint="one object a line, .jsonl, is read"
            ) from error
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


def _only(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in columns if name in row}
