"""A folder of pictures as a source, with captions beside them, in a table, or none."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import (
    BAD_CAPTIONS,
    FILE_NAME,
    FOLDER_NAME,
    BadCaptions,
    from_json,
    from_text,
    parsed,
)
from sanakit.data.sources.names import (
    FOREIGN,
    PICTURES,
    ending,
    is_hidden,
    path_inside,
    safe_name,
    shown,
    without_ending,
    words_of,
)
from sanakit.data.sources.places import LARGEST_TEXT, read_inside
from sanakit.data.sources.rows import TABLES, Rows, open_rows
from sanakit.data.sources.source import (
    DUPLICATE,
    FORMAT,
    UNLISTED,
    UNREADABLE,
    UNSAFE,
    Entry,
    ListSource,
    SourceSettings,
)
from sanakit.data.sources.table import Columns, named_file, recognise, told
from sanakit.data.training_set import SCAN
from sanakit.data.units import SET
from sanakit.errors import DataError
from sanakit.untrusted import LARGEST_FILE

LIST = "meta_data.json"
_TEXTS = (".txt", ".caption", ".json")
_TABLE_NAMES = frozenset(
    ("metadata", "captions", "caption", "prompts", "labels", "meta_cap", "manifest")
)
_REPEATS = re.compile(r"\d{1,3}_(.*\w.*)")  # kohya's folders: repeats, then words for what it holds


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
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # a link to itself, or into a ring of links
            if kind in PICTURES or kind in _TEXTS:
                refuse(UNREADABLE, error.strerror or str(error))
            return
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


def _take_other_forms(texts: dict[str, list[str]], pictures: Iterable[str]) -> None:
    """Give texts the names of pictures that are spelled alike in the other form of Unicode.

    A letter with its accent is one sign or two, by the system that wrote the name. A text whose own
    spelling is a picture's stays with it.
    """
    spelled = {spelling for name in pictures for spelling in (without_ending(name), name)}
    other = {unicodedata.normalize("NFC", one): one for one in spelled if one not in texts}
    for stem in [stem for stem in texts if stem not in spelled]:
        same = other.get(unicodedata.normalize("NFC", stem))
        if same is not None:
            texts.setdefault(same, []).extend(texts.pop(stem))


class FolderSource(ListSource):
    """The pictures of ``listing``, sorted by id: their path without its ending.

    Captions come from NAME.txt, NAME.caption and NAME.json (or NAME.jpg.txt, NAME.jpg.json), and
    from tables called metadata or captions in the folder of the pictures or above. A folder with
    NVlabs' `meta_data.json` gives the pictures that it lists and no others.
    """

    def __init__(self, root: Path, listing: Listing, settings: SourceSettings) -> None:
        super().__init__(root, "folder", settings)
        self._tables: list[tuple[Rows, Columns]] = []
        self._table_files: list[str] = []
        entries: list[Entry | Refusal] = [*listing.refusals]
        pictures = self._pictures(listing, entries)
        if self.captions.reads:
            self._join_tables(listing, pictures, entries)
        if LIST in listing.folders.get("", ()):
            self._keep_listed(pictures, entries)
        self._bare = not self._tables and not any(p.texts for p in pictures.values())
        self.entries = sorted([*entries, *pictures.values()], key=lambda entry: entry.id)

    def files_of(self, entries: Sequence[Entry]) -> list[str]:
        """The pictures, their captions, and all tables."""
        names = [name for entry in entries for name in (entry.file, *entry.texts)]
        return [*names, *self._table_files]

    def described(self, entry: Entry) -> Iterator[Sample | Refusal]:
        """The sample with the captions of tables and of the files beside it, or of its name."""
        problems: list[str] = []
        found, licence, origin = told(self._tables, entry.rows)
        for name in entry.texts if self.captions.reads else ():
            try:
                found += self._from_file(name, without_ending(entry.file).rpartition("/")[2])
            except DataError as error:
                problems.append(f"{name}: {error.message}")
        sample = self.sample(entry.id, Place(kind="file", file=entry.file), licence, origin)
        yield from self.captions.applied(sample, found or self._from_names(entry), problems)

    def _pictures(self, listing: Listing, entries: list[Entry | Refusal]) -> dict[str, Entry]:
        pictures: dict[str, Entry] = {}
        for folder, names in listing.folders.items():
            texts: dict[str, list[str]] = {}
            for name in names:
                if ending(name) in _TEXTS:
                    texts.setdefault(without_ending(name), []).append(join(folder, name))
            _take_other_forms(texts, [name for name in names if ending(name) in PICTURES])
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
                    pictures[id] = Entry(id, file, texts=beside)
        return pictures

    def _join_tables(
        self, listing: Listing, pictures: dict[str, Entry], entries: list[Entry | Refusal]
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
                columns = recognise(rows, reads=True)
            except DataError as error:
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
            pictures[picture.id] = replace(picture, rows=tuple(found))

    def _keep_listed(self, pictures: dict[str, Entry], entries: list[Entry | Refusal]) -> None:
        """Keep what NVlabs' list of pictures names, with or without endings."""
        try:
            names = parsed(read_inside(self.root, LIST, limit=LARGEST_FILE))["img_names"]
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
            return from_json(parsed(data), key=key)
        return from_text(data, whole=self.captions.use == "whole")

    def _from_names(self, picture: Entry) -> list[Caption]:
        folder = picture.file.rpartition("/")[0].rpartition("/")[2]
        repeated = _REPEATS.fullmatch(folder)
        if repeated:
            words = " ".join(repeated[1].replace("_", " ").split())
            return [Caption(text=words, captioner=FOLDER_NAME)]
        return [Caption(text=words_of(picture.file), captioner=FILE_NAME)] if self._bare else []
