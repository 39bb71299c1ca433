"""WebDataset tars as a source: members are found by headers and read where they lie."""

from __future__ import annotations

import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import (
    BAD_CAPTIONS,
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
from sanakit.untrusted import open_file

Span = tuple[int, int]  # first byte in the tar, number of bytes
_TEXTS = ("txt", "caption", "json", "cls")
_BROKEN = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError)
_LARGEST_HEADER = 1 << 16
"""Bytes of a long name, or of the further fields of a member; and their number for all members."""
_TAIL = 1 << 16  # bytes after the end of the archive that are looked at


@dataclass(slots=True)
class Keyed:
    """The members of one key: the picture's ending and span, and those of texts by ending."""

    key: str
    picture: str = ""
    span: Span = (0, 0)
    texts: dict[str, Span] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a tar: its path up to the last dot, the ending behind it, and where it lies.

    ``run`` numbers the stretches of members of one WebDataset key that follow each other.
    """

    path: str
    ending: str
    span: Span
    run: int

    @property
    def is_picture(self) -> bool:
        return f".{self.ending}" in PICTURES

    @property
    def key(self) -> str:
        """As WebDataset has it: up to the first dot after the last "/"."""
        folder, slash, base = self.path.rpartition("/")
        return f"{folder}{slash}{base.partition('.')[0]}"


def index_tar(path: Path) -> tuple[Keyed | Refusal, ...]:
    """The samples of an uncompressed tar in order, with refusals whose ids are keys in the tar.

    A key is a member's name up to the first dot after the last "/", as WebDataset has it. Where
    names have dots of their own, as img_1.0.png beside img_1.0.txt has, the key goes up to the last
    dot: no picture gets the texts of another. A tar that is damaged or cut short gives what lies
    before, and a refusal with the id "".
    """
    return _index(path, file_state(path))


@lru_cache(maxsize=4)
def _index(path: Path, state: tuple[int, int]) -> tuple[Keyed | Refusal, ...]:
    members: list[_Member] = []
    refusals: list[Refusal] = []
    try:
        with open_file(path) as file:
            for member in _members(file, state[0]):
                try:
                    _note(member, state[0], members, refusals)
                except DataError as error:
                    name = shown(member.name)
                    refusals.append(Refusal(id=name, reason=UNSAFE, detail=error.message))
    except (DataError, *_BROKEN) as error:
        detail = error.message if isinstance(error, DataError) else str(error)
        refusals.append(Refusal(id="", reason=UNREADABLE, detail=detail))
    found: list[Keyed | Refusal] = []
    for entry in _grouped(members, refusals):
        if entry.picture:
            found.append(entry)
        elif entry.texts or entry.others:
            endings = ", ".join(sorted([*entry.texts, *entry.others]))
            found.append(Refusal(id=entry.key, reason=NO_PICTURE, detail=f"it has {endings}"))
    return (*found, *refusals)


def _grouped(members: Sequence[_Member], refusals: list[Refusal]) -> list[Keyed]:
    """The members by their keys, in order of the first of each; what cannot be told is refused."""
    pictures = {_plain(one.path) for one in members if one.is_picture}
    described = {_plain(one.path) for one in members if one.ending in _TEXTS}
    by_name = _named_to_the_last_dot(members, described)
    keyed: dict[str, Keyed] = {}
    runs: dict[str, int] = {}  # of each key's picture
    texts: dict[tuple[str, str], list[_Member]] = {}
    for one in members:
        key = _owner(one, pictures, described) if by_name else one.key
        entry = keyed.setdefault(_plain(key), Keyed(key))
        kind = f"{one.path[len(key) + 1 :]}.{one.ending}".lower().lstrip(".")
        if one.ending in _TEXTS:
            texts.setdefault((_plain(key), kind), []).append(one)
        elif not one.is_picture:
            entry.others.append(kind or "a member without an ending")
        elif not entry.picture or ("." in entry.picture and "." not in kind):
            entry.key, entry.picture, entry.span = key, kind, one.span
            runs[_plain(key)] = one.run
        elif "." in entry.picture or "." not in kind:
            # "1.mask.png" beside "1.jpg" is no picture of its own; "1.png" beside it would be.
            detail = f"{one.path}.{one.ending}: the key has a picture already, .{entry.picture}"
            refusals.append(Refusal(id=key, reason=DUPLICATE, detail=detail))
    for (plain, kind), found in texts.items():
        # Of several of one name only that beside the picture is surely the picture's.
        near = found if len(found) == 1 else [one for one in found if one.run == runs.get(plain)]
        if len(near) == 1 or (near and plain not in runs):
            keyed[plain].texts[kind] = near[0].span
        else:
            detail = f"{kind}: the tar has {len(found)} of this name, and none is surely this one's"
            refusals.append(Refusal(id=keyed[plain].key, reason=BAD_CAPTIONS, detail=detail))
    return list(keyed.values())


def _named_to_the_last_dot(members: Sequence[_Member], described: Set[str]) -> bool:
    """Whether a tar's names have dots of their own: they name pictures, or number them."""
    dotted = (one for one in members if one.is_picture and one.path != one.key)
    return any(_plain(one.path) in described or _is_numbered(one) for one in dotted)


def _is_numbered(one: _Member) -> bool:
    """Whether a number follows the first dot: "img_1.0", and not "img_1.mask"."""
    return one.path[len(one.key) + 1 :][:1].isdigit()


def _owner(one: _Member, pictures: Set[str], described: Set[str]) -> str:
    """The key of a member where names go up to the last dot.

    Of "img_1.0.llava.txt" it is that of the picture "img_1.0", by what is no number. "img_1.1.txt"
    never belongs to "img_1.png": it is the text of a picture that is not there. ``described`` have
    a text of their own name; another picture, "img_1.mask.png", is a part of the sample "img_1".
    """
    key = one.path
    own = not one.is_picture or _plain(key) in described or _is_numbered(one)
    while not own or _plain(key) not in pictures:
        own = True
        rest, dot, last = key.rpartition(".")
        if not dot or "/" in last or last[:1].isdigit():
            return one.path
        key = rest
    return key


def _plain(name: str) -> str:
    """One spelling of a name: a letter with its accent is one sign or two."""
    return unicodedata.normalize("NFC", name)


class _Headers:
    """A tar to `tarfile`, which reads a long name or further fields whole, however long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, length: int) -> bytes:
        if not 0 <= length <= _LARGEST_HEADER:
            raise DataError(f"a name or fields of {length} bytes before byte {self.tell()}")
        return self._file.read(length)


def _members(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The members of a tar by their headers, checking that it goes on to its end."""
    if file.read(2) == b"\x1f\x8b":
        raise DataError("the tar is compressed: unpack it with gunzip")
    file.seek(0)
    with tarfile.open(fileobj=cast(BinaryIO, _Headers(file)), mode="r:") as tar:
        end = -1
        while (member := tar.next()) is not None:
            vars(tar)["members"].clear()  # it would keep every header
            if tar.offset <= end:
                raise DataError(f"the header at byte {member.offset} leads backwards")
            end = tar.offset
            if len(tar.pax_headers) > _LARGEST_HEADER:  # each member has a copy of them
                raise DataError(f"{len(tar.pax_headers)} fields for all members")
            yield member
        at = tar.offset
    file.seek(at)
    if any(file.read(_TAIL)):
        # Without this, a damaged header would look like the end.
        raise DataError(f"what follows byte {at} of {size} is no member: damaged, or two tars")


def _note(
    member: tarfile.TarInfo, size: int, members: list[_Member], refusals: list[Refusal]
) -> None:
    if member.isdir():
        return
    name = safe_name(member.name)
    base = name.rpartition("/")[2]
    if is_hidden(base) or is_hidden(name):
        return
    if not member.isreg() or member.issparse():
        raise DataError("a link, a device or a file with holes, not a plain file")
    path, _, ending = name.rpartition(".") if "." in base else (name, "", "")
    span = (member.offset_data, member.size)
    found = _Member(path, ending.lower(), span, 0)
    if sum(span) > size:
        refusals.append(Refusal(id=found.key, reason=UNREADABLE, detail=f"{name} is cut short"))
        return
    before = members[-1] if members else None
    again = before is not None and before.key == found.key
    run = 0 if before is None else before.run + (not again)
    members.append(replace(found, run=run))


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
                    found += _from_member(kind, data, whole=self.captions.use == "whole")
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


def _from_member(kind: str, data: bytes, *, whole: bool) -> list[Caption]:
    name, _, last = kind.rpartition(".")
    captioner = name or ORIGINAL
    if last == "json":
        found = from_json(parsed(data))
        return [replace(c, captioner=captioner) if c.captioner == ORIGINAL else c for c in found]
    if last == "cls":  # of a class a number says nothing without its table
        text = decoded(data).strip()
        return [] if text.lstrip("-").isdigit() else [Caption(text=text, captioner=name or "cls")]
    return from_text(data, captioner, whole=whole)


def _split(unit: str) -> tuple[int, int]:
    number, part = unit.split("-")
    return int(number), int(part)
