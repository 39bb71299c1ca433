"""The recipe `glyph`: packages of icons become a memory map of pictures and a list of records.

A build has two stages, each ended by a rename: the pictures, which are the slow part, and the
records that describe them. `summary.json` is written last and marks a finished build.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sanakit.data.glyph.attribution import (
    EMOJIBASE_CREDIT,
    FLUENT_3D_CREDIT,
    Credit,
    attribution_text,
    credit_of,
)
from sanakit.data.glyph.drawing import Drawing, Drawn, Report, draw_all
from sanakit.data.glyph.emoji import EmojiTable, read_emoji
from sanakit.data.glyph.iconify import Collection, read_collections
from sanakit.data.glyph.packages import (
    EMOJIBASE,
    FLUENT_3D,
    ICONIFY,
    fetch,
    read_members,
    verify,
)
from sanakit.data.glyph.pictures import PICTURES, RECORDS, SUMMARY
from sanakit.data.glyph.records import describe
from sanakit.data.glyph.selection import FLUENT_3D_SOURCE, STYLES, Entry, select
from sanakit.data.glyph.silhouettes import SETS
from sanakit.errors import ConfigError
from sanakit.weights.atomic import replacing

PICTURES_VERSION = 1  # raise it when the same settings would draw other pictures
RECORDS_VERSION = 1  # raise it when the same pictures would get other records

PACKAGES = (ICONIFY, FLUENT_3D, EMOJIBASE)
ATTRIBUTION = "ATTRIBUTION.md"
STAGE = "pictures.json"
ASSETS, ENDING = "package/assets/", ".webp"


@dataclass(frozen=True, kw_only=True)
class GlyphSummary:
    """What a build holds, and what was left out because it was blank or could not be drawn.

    ``settings`` identifies all that the result depends on; ``built`` is False for a build that
    was found finished.
    """

    pictures: int
    blank: int
    failed: int
    concepts: int
    styles: dict[str, int]
    splits: dict[str, int]
    settings: str
    built: bool = True


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Everything read from the packages."""

    collections: Mapping[str, Collection]
    rendered: Mapping[str, bytes]
    table: EmojiTable

    def drawing(self, entry: Entry) -> Drawing:
        if entry.source == FLUENT_3D_SOURCE:
            return Drawing(id=entry.id, encoded=self.rendered[entry.icon])
        icon = self.collections[entry.source].icons[entry.icon]
        return Drawing(id=entry.id, icon=icon, colour=entry.shade)

    def credits(self) -> list[Credit]:
        sets = [credit_of(one, ICONIFY) for one in self.collections.values()]
        return [FLUENT_3D_CREDIT, *sets, EMOJIBASE_CREDIT]


def _silent(_: str) -> None:
    """Report nothing."""


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _archives(packages: Path | None, out: Path) -> list[Path]:
    if packages is not None:
        return [verify(package, packages) for package in PACKAGES]
    return [fetch(package, out / "packages") for package in PACKAGES]


def _read_sources(iconify: Path, fluent: Path, emojibase: Path) -> _Sources:
    prefixes = [prefix for prefix in STYLES if prefix != FLUENT_3D_SOURCE]
    collections = read_collections(iconify, (*prefixes, *SETS))
    members = read_members(fluent, lambda name: name.startswith(ASSETS) and name.endswith(ENDING))
    table = read_emoji(emojibase)
    for prefix in prefixes:
        table.learn(collections[prefix].codepoints, collections[prefix].aliases)
    return _Sources(
        collections=collections,
        rendered={name[len(ASSETS) : -len(ENDING)]: data for name, data in members.items()},
        table=table,
    )


def _draw_stage(
    out: Path,
    entries: Sequence[Entry],
    sources: _Sources,
    *,
    settings: str,
    size: int,
    workers: int,
    report: Report,
) -> Drawn:
    """The pictures of the entries: found in ``out`` if the same were drawn before, else drawn."""
    settings = _hash([settings, [(entry.id, entry.shade) for entry in entries]])
    stage = _read_object(out / STAGE)
    if stage.pop("settings", None) == settings and (out / PICTURES).is_file():
        report("found the pictures")
        return Drawn(**stage)
    (out / STAGE).unlink(missing_ok=True)
    (out / SUMMARY).unlink(missing_ok=True)
    drawings = [sources.drawing(entry) for entry in entries]
    drawn = draw_all(out / PICTURES, drawings, size=size, workers=workers, report=report)
    _write(out / STAGE, json.dumps({**asdict(drawn), "settings": settings}))
    return drawn


def build_glyph(
    out: Path,
    *,
    packages: Path | None = None,
    size: int = 128,
    workers: int = 2,
    limit: int | None = None,
    report: Report = _silent,
) -> GlyphSummary:
    """Build the data set in ``out``, or recognise that it is built already.

    ``packages`` is a folder that holds the three archives; without it they are fetched with the
    npm client into ``out/packages``. ``limit`` keeps that many pictures, spread evenly over all.
    A build that is killed leaves no `summary.json` and goes on from the last finished stage.

    Raises:
        ConfigError: ``size``, ``workers`` or ``limit`` is less than 1.
        DataError: an archive is absent, damaged or not the pinned one, or nothing could be drawn.
    """
    for name, value in (("size", size), ("workers", workers), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is less than 1", hint=f"give {name}=1 or more")
    drawing = _hash([PICTURES_VERSION, [package.sha256 for package in PACKAGES], size, limit])
    settings = _hash([drawing, RECORDS_VERSION])
    found = _read_object(out / SUMMARY)
    if found.get("settings") == settings and (out / PICTURES).is_file():
        report(f"found a finished build in {out}")
        return GlyphSummary(**{**found, "built": False})

    out.mkdir(parents=True, exist_ok=True)
    report("reading the packages")
    sources = _read_sources(*_archives(packages, out))
    entries = select(sources.collections, sources.rendered, sources.table)
    if limit is not None and limit < len(entries):
        entries = [entries[index * len(entries) // limit] for index in range(limit)]
    drawn = _draw_stage(
        out, entries, sources, settings=drawing, size=size, workers=workers, report=report
    )

    report("describing the pictures")
    kept = [entries[index] for index in drawn.kept]
    credits = sources.credits()
    licences = {credit.source: credit.licence for credit in credits}
    records = describe(kept, np.load(out / PICTURES, mmap_mode="r"), licences)
    (out / SUMMARY).unlink(missing_ok=True)
    _write(out / RECORDS, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    counts = Counter(entry.source for entry in kept)
    _write(out / ATTRIBUTION, attribution_text(credits, counts))
    summary = GlyphSummary(
        pictures=len(kept),
        blank=len(drawn.blank),
        failed=len(drawn.failed),
        concepts=len({entry.concept for entry in kept}),
        styles=dict(Counter(entry.style for entry in kept)),
        splits=dict(Counter(record.split for record in records)),
        settings=settings,
    )
    _write(out / SUMMARY, json.dumps(asdict(summary), indent=2) + "\n")
    report(f"built {summary.pictures} pictures of {summary.concepts} concepts in {out}")
    return summary
