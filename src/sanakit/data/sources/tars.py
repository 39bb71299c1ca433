"""WebDataset tars as a source: members are found by headers and read where they lie."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import (
    ORIGINAL,
    decoded,
    from_json,
    from_text,
    parsed,
)
from sanakit.data.sources.names import (
    PICTURES,
    is_hidden,
    path_inside,
    safe_name,
    shown,
    without_ending,
)
from sanakit.data.sources.places import LARGEST_TEXT, read_inside
from sanakit.data.sources.source import (
    DUPLICATE,
    NO_PICTURE,
    UNREADABLE,
    UNSAFE,
    Source,
    SourceSettings,
    file_state,
)
from sanakit.data.sources.table import text_at
from sanakit.errors import DataError

Span = tuple[int, int]  # first byte in the tar, number of bytes
_TEXTS = ("txt", "caption", "json", "cls")
_BROKEN = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)
_TAIL = 1 << 16  # bytes after the end of the archive that are looked at


@dataclass(slots=True)
class Keyed:
    """The members of one key: the picture's ending and span, and those of texts by ending."""

    key: str
    picture: str = ""
    span: Span = (0, 0)
    texts: dict[str, Span] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def index_tar(path: Path) -> tuple[Keyed | Refusal, ...]:
    """The samples of an uncompressed tar in order, with refusals whose ids are keys in the tar.

    A key is a member's name up to the first dot after the last "/", as WebDataset has it. A tar
    that is damaged or cut short gives what lies before, and a refusal with the id "".
    """
    return _index(path, file_state(path))


@lru_cache(maxsize=4)
def _index(path: Path, state: tuple[int, int]) -> tuple[Keyed | Refusal, ...]:
    keyed: dict[str, Keyed] = {}
    refusals: list[Refusal] = []
    try:
        with path.open("rb") as file:
            for member in _members(file, state[0]):
                try:
                    _place(member, state[0], keyed, refusals)
                except DataError as error:
                    name = shown(member.name)
                    refusals.append(Refusal(id=name, reason=UNSAFE, detail=error.message))
    except (DataError, *_BROKEN) as error:
        detail = error.message if isinstance(error, DataError) else str(error)
        refusals.append(Refusal(id="", reason=UNREADABLE, detail=detail))
    found: list[Keyed | Refusal] = []
    for entry in keyed.values():
        if entry.picture:
            found.append(entry)
        elif entry.texts or entry.others:
            endings = ", ".join(sorted([*entry.texts, *entry.others]))
            found.append(Refusal(id=entry.key, reason=NO_PICTURE, detail=f"it has {endings}"))
    return (*found, *refusals)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar by their headers, checking that it goes on to its end."""
    if file.read(2) == b"\x1f\x8b":
        raise DataError("the tar is compressed: unpack it with gunzip")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        end = -1
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep every header
            if tar.offset <= end:
                raise DataError(f"the header at byte {member.offset} leads backwards")
            end = tar.offset
            yield member
        at = tar.offset
    file.seek(at)
    if any(file.read(_TAIL)):
        # Without this, a damaged header would look like the end.
        raise DataError(f"what follows byte {at} of {size} is no member: damaged, or two tars")


def _place(
    member: tarfile.TarInfo, size: int, keyed: dict[str, Keyed], refusals: list[Refusal]
) -> None:
    if member.isdir():
        return
    name = safe_name(member.name)
    folder, _, base = name.rpartition("/")
    if is_hidden(base) or is_hidden(name):
        return
    if not member.isreg() or member.issparse():
        raise DataError("a link, a device or a file with holes, not a plain file")
    stem, _, kind = base.partition(".")
    kind = kind.lower()
    key = f"{folder}/{stem}" if folder else stem
    last = kind.rpartition(".")[2]
    span = (member.offset_data, member.size)
    if member.offset_data + member.size > size:
        refusals.append(Refusal(id=key, reason=UNREADABLE, detail=f"{name} is cut short"))
        return
    entry = keyed.setdefault(key, Keyed(key))
    if last in _TEXTS:
        entry.texts[kind] = span
    elif f".{last}" not in PICTURES:
        entry.others.append(kind or "a member without an ending")
    elif not entry.picture or ("." in entry.picture and "." not in kind):
        entry.picture, entry.span = kind, span
    elif "." in entry.picture or "." not in kind:
        # "1.mask.png" beside "1.jpg" is no picture of its own; "1.png" beside it would be.
        detail = f"{name}: the key has a picture already, .{entry.picture}"
        refusals.append(Refusal(id=key, reason=DUPLICATE, detail=detail))


@dataclass(frozen=True)
class Shard:
    """A tar: its file relative to the source, and how many samples it claims (None: unknown)."""

    file: str
    count: int | None = None

    @property
    def stem(self) -> str:
        """Its path without the ending, which goes before the keys of its samples."""
        return without_ending(self.file)


class TarSource(Source):
    """The samples of tars, in order of the tars and of their members.

    A unit "00012-003" is the fourth part of the thirteenth tar, so that reading it looks into no
    other tar. Captions come from members KEY.txt, KEY.caption, KEY.json, KEY.cls with a word in
    it, and KEY.NAME.txt, which is by captioner NAME.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[Shard],
        settings: SourceSettings,
        *,
        kind: str = "webdataset",
    ) -> None:
        super().__init__(root, kind, settings)
        self._shards = list(shards)

    def units(self) -> list[str]:
        """Names of the units, in order; tars that do not say how much they hold are indexed."""
        names = []
        for number, shard in enumerate(self._shards):
            names += [f"{number:05d}-{part:03d}" for part in range(self._parts(number, shard))]
        return names

    def state(self, unit: str) -> Sequence[Any]:
        """What the list says of the tar, and the states of it and of the files about it."""
        shard = self._shards[_split(unit)[0]]
        return asdict(shard), self.states_of((shard.file, *self.files_about(shard)))

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples and refusals, in order of the members."""
        number, part = _split(unit)
        shard = self._shards[number]
        entries = self._entries(number)
        start = part * self.settings.unit_size
        last = part + 1 >= self._parts(number, shard)
        for entry in entries[start : None if last else start + self.settings.unit_size]:
            if isinstance(entry, Refusal):
                yield replace(entry, id=f"{shard.stem}/{entry.id}" if entry.id else shard.file)
                continue
            place = Place(kind="span", file=shard.file, start=entry.span[0], length=entry.span[1])
            sample = self.sample(f"{shard.stem}/{entry.key}", place)
            yield from self._described(shard, entry, sample)
        if last:
            yield from self.at_end(shard, entries)

    def files_about(self, shard: Shard) -> list[str]:
        """Further files that say something of a tar's samples; none here."""
        return []

    def at_end(self, shard: Shard, entries: Sequence[Keyed | Refusal]) -> Iterator[Refusal]:
        """What is to be said of a whole tar, after its last part; nothing here."""
        yield from ()

    def captions_of(self, shard: Shard, key: str, value: Any) -> list[Caption]:
        """The captions of a member KEY.json with this value, None if there is no such member."""
        return [] if value is None else from_json(value, key=key)

    def _described(self, shard: Shard, entry: Keyed, sample: Sample) -> Iterator[Sample | Refusal]:
        found: list[Caption] = []
        problems: list[str] = []
        value = None
        for kind, span in sorted(entry.texts.items()) if self.captions.reads else ():
            try:
                data = read_inside(
                    self.root, shard.file, start=span[0], length=span[1], limit=LARGEST_TEXT
                )
                if kind == "json":
                    value = parsed(data)
                else:
                    found += _from_member(kind, data)
            except DataError as error:
                problems.append(f"{kind}: {error.message}")
        if self.captions.reads:
            found = [*self.captions_of(shard, entry.key, value), *found]
        facts = value if isinstance(value, Mapping) else {}
        own = facts.get("sanakit")
        facts = {**facts, **own} if isinstance(own, Mapping) else facts
        licence = text_at(facts, "licence") or text_at(facts, "license")
        origin = text_at(facts, "source") or text_at(facts, "url")
        sample = replace(
            sample, licence=shown(licence) or sample.licence, source=shown(origin) or sample.source
        )
        yield from self.captions.applied(sample, found, problems)

    def _parts(self, number: int, shard: Shard) -> int:
        count = shard.count
        # A sample takes two headers at least: a larger claim is an error of the list.
        if count is None or 2 * 512 * count > file_state(self.root / shard.file)[0]:
            count = len(self._entries(number))
        return max(1, -(-count // self.settings.unit_size))

    def _entries(self, number: int) -> Sequence[Keyed | Refusal]:
        shard = self._shards[number]
        try:
            return index_tar(path_inside(self.root, shard.file))
        except DataError as error:
            reason = UNSAFE if error.message.startswith(UNSAFE) else UNREADABLE
            return (Refusal(id="", reason=reason, detail=error.message),)


def _from_member(kind: str, data: bytes) -> list[Caption]:
    name, _, last = kind.rpartition(".")
    captioner = name or ORIGINAL
    if last == "json":
        found = from_json(parsed(data))
        return [replace(c, captioner=captioner) if c.captioner == ORIGINAL else c for c in found]
    if last == "cls":  # of a class a number says nothing without its table
        text = decoded(data).strip()
        return [] if text.lstrip("-").isdigit() else [Caption(text=text, captioner=name or "cls")]
    return from_text(data, captioner)


def _split(unit: str) -> tuple[int, int]:
    number, part = unit.split("-")
    return int(number), int(part)
