"""What the columns of a table are for: the picture, its captions, id, licence and origin."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sanakit.data.samples import Caption
from sanakit.data.sources.captions import CaptionPolicy, caption_keys, from_keys
from sanakit.data.sources.names import PICTURES, ending, listed, safe_name, shown
from sanakit.data.sources.rows import Rows
from sanakit.errors import DataError

_FILES = listed(
    "file_name filename file image_file file_path filepath image_path img_path path image_name"
    " image img picture photo name"
)
_BYTES = listed("image img picture photo jpg jpeg png webp image_bytes bytes data")
_IDS = listed("id key __key__ uid sample_id image_id")
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


def recognise(rows: Rows, policy: CaptionPolicy) -> Columns:
    """Find out what the columns of a table are for.

    Raises:
        DataError: no column names files or holds pictures; a column of ``policy`` is missing.
    """
    texts = [name for name in rows.columns if name not in rows.binary]
    for name in policy.columns:
        if name not in texts:
            near = difflib.get_close_matches(name, texts, n=1)
            raise DataError(
                f"{rows.path} has no column {name!r} for captions",
                hint=(f"did you mean {near[0]!r}? " if near else "")
                + f"columns: {', '.join(rows.columns)}",
            )
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
        captions=tuple(caption_keys(rest, policy)) if policy.reads else (),
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

    Raises:
        DataError: it names none, or one outside.
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
    if ending(name) in PICTURES:
        return name
    found = (f"{name}{end}" for end in sorted(PICTURES) if os.path.isfile(f"{base}/{name}{end}"))
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
