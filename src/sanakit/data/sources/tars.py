"""WebDataset tars as a source: members are found by headers and read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sanakit.data.samples import Caption, Place, Refusal, Sample
from sanakit.data.sources.captions import (
    ORIGINAL,
    CaptionPolicy,
    decoded,
    from_json,
    from_text,
    parsed,
)
from sanakit.data.sources.columns import text_at
from sanakit.data.sources.names import path_inside, shown, without_ending
from sanakit.data.sources.places import LARGEST_TEXT, read_inside
from sanakit.data.sources.source import UNREADABLE, UNSAFE, file_state
from sanakit.data.sources.tar_index import Keyed, index_tar
from sanakit.data.stages import fingerprint
from sanakit.errors import DataError


@dataclass(frozen=True)
class Shard:
    """A tar: its file relative to the source, and how many samples it claims (None: unknown)."""

    file: str
    count: int | None = None

    @property
    def stem(self) -> str:
        """Its path without the ending, which goes before the keys of its samples."""
        return without_ending(self.file)


class TarSource:
    """The samples of tars, in order of the tars and of their members.

    A unit "00012-003" is the fourth part of the thirteenth tar, so that reading it looks into no
    other tar. Captions come from members KEY.txt, KEY.caption, KEY.json, KEY.cls with a word in
    it, and KEY.NAME.txt, which is by captioner NAME.
    """

    kind = "webdataset"

    def __init__(
        self,
        root: Path,
        shards: Sequence[Shard],
        *,
        captions: CaptionPolicy,
        unit_size: int,
        licence: str,
    ) -> None:
        self.root = root
        self._shards, self._captions = list(shards), captions
        self._unit_size, self._licence = unit_size, licence
        self._made_from: dict[str, str] = {}

    def units(self) -> list[str]:
        """Names of the units, in order; tars that do not say how much they hold are indexed."""
        names = []
        for number, shard in enumerate(self._shards):
            names += [f"{number:05d}-{part:03d}" for part in range(self._parts(number, shard))]
        return names

    def made_from(self, unit: str) -> str:
        """Hash sizes and times of the tar and of the files about it, and the settings."""
        if unit not in self._made_from:
            shard = self._shards[_split(unit)[0]]
            self._made_from[unit] = fingerprint(
                [self.kind, unit, self._unit_size, self._licence, asdict(self._captions)],
                asdict(shard),
                [
                    (file, *file_state(self.root / file))
                    for file in (shard.file, *self.files_about(shard))
                ],
            )
        return self._made_from[unit]

    def read(self, unit: str) -> Iterator[Sample | Refusal]:
        """The unit's samples and refusals, in order of the members."""
        number, part = _split(unit)
        shard = self._shards[number]
        entries = self._entries(number)
        start = part * self._unit_size
        last = part + 1 >= self._parts(number, shard)
        for entry in entries[start : None if last else start + self._unit_size]:
            if isinstance(entry, Refusal):
                yield replace(entry, id=f"{shard.stem}/{entry.id}" if entry.id else shard.file)
                continue
            sample = Sample(
                id=f"{shard.stem}/{entry.key}",
                place=Place(
                    kind="span", file=shard.file, start=entry.span[0], length=entry.span[1]
                ),
                licence=self._licence,
                source=self.root.name,
            )
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
        return [] if value is None else from_json(value, self._captions, key=key)

    def _described(self, shard: Shard, entry: Keyed, sample: Sample) -> Iterator[Sample | Refusal]:
        found: list[Caption] = []
        problems: list[str] = []
        value = None
        for kind, span in sorted(entry.texts.items()) if self._captions.reads else ():
            try:
                data = read_inside(
                    self.root, shard.file, start=span[0], length=span[1], limit=LARGEST_TEXT
                )
                if kind == "json":
                    value = parsed(data)
                else:
                    found += _from_member(kind, data, self._captions)
            except DataError as error:
                problems.append(f"{kind}: {error.message}")
        if self._captions.reads:
            found = [*self.captions_of(shard, entry.key, value), *found]
        facts = value if isinstance(value, Mapping) else {}
        own = facts.get("sanakit")
        facts = {**facts, **own} if isinstance(own, Mapping) else facts
        licence = text_at(facts, "licence") or text_at(facts, "license")
        origin = text_at(facts, "source") or text_at(facts, "url")
        sample = replace(
            sample, licence=shown(licence) or self._licence, source=shown(origin) or sample.source
        )
        yield from self._captions.applied(sample, found, problems)

    def _parts(self, number: int, shard: Shard) -> int:
        count = shard.count
        # A sample takes two headers at least: a larger claim is an error of the list.
        if count is None or 2 * 512 * count > file_state(self.root / shard.file)[0]:
            count = len(self._entries(number))
        return max(1, -(-count // self._unit_size))

    def _entries(self, number: int) -> Sequence[Keyed | Refusal]:
        shard = self._shards[number]
        try:
            return index_tar(path_inside(self.root, shard.file))
        except DataError as error:
            reason = UNSAFE if error.message.startswith(UNSAFE) else UNREADABLE
            return (Refusal(id="", reason=reason, detail=error.message),)


def _from_member(kind: str, data: bytes, policy: CaptionPolicy) -> list[Caption]:
    name, _, last = kind.rpartition(".")
    captioner = name or ORIGINAL
    if last == "json":
        found = from_json(parsed(data), policy)
        return [replace(c, captioner=captioner) if c.captioner == ORIGINAL else c for c in found]
    if last == "cls":  # of a class a number says nothing without its table
        text = decoded(data).strip()
        return [] if text.lstrip("-").isdigit() else [Caption(text=text, captioner=name or "cls")]
    return from_text(data, policy, captioner)


def _split(unit: str) -> tuple[int, int]:
    number, part = unit.split("-")
    return int(number), int(part)
