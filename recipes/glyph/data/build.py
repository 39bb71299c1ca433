"""The recipe `glyph`: packages of art become drawings, and those pictures of any size.

`drawings/` holds everything in a portable form; `pictures-SIZE/`, `records.jsonl` and
`ATTRIBUTION.md` are made from it alone. `summary.json` is written last and marks a finished build.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recipes.glyph.data.attribution import attribution_text
from recipes.glyph.data.drawing import read_records
from recipes.glyph.data.packages import Package, fetch, verify
from recipes.glyph.data.pictures import RECORDS, SUMMARY, Record, sizes, store_folder
from recipes.glyph.data.rows.all_rows import ROWS
from recipes.glyph.data.rows.row import Row
from recipes.glyph.data.stages import (
    PICTURES_VERSION,
    DrawingStage,
    Pack,
    PictureStage,
    credits_of,
    packs_of,
    read_marks,
    unpack_drawings,
)
from recipes.glyph.data.store import INDEX, write_index
from sanakit.data.units import LocalEngine, Mark, Report, fingerprint, read_mark, run_stage
from sanakit.errors import ConfigError
from sanakit.files import write_atomically, write_json

RECORDS_VERSION = 1  # raise it when the same drawings would get other records
ATTRIBUTION = "ATTRIBUTION.md"
DRAWINGS = "drawings"


@dataclass(frozen=True, kw_only=True)
class GlyphSummary:
    """What a build holds, and what was left out because it was blank or could not be drawn.

    ``shares`` are the parts of training draws by row; ``settings`` identifies all that the result
    depends on; ``built`` is False for a build that was found finished.
    """

    pictures: int
    blank: int
    failed: int
    failures: dict[str, str]
    concepts: int
    rows: dict[str, int]
    shares: dict[str, float]
    styles: dict[str, int]
    splits: dict[str, int]
    sizes: list[int]
    drawings_bytes: int
    settings: str
    built: bool = True


def _silent(_: str) -> None:
    """Report nothing."""


def build_glyph(
    out: Path,
    *,
    packages: Path | None = None,
    drawings: Path | None = None,
    size: int | Sequence[int] = 128,
    workers: int = 2,
    limit: int | None = None,
    without: Sequence[str] = (),
    rows: Sequence[Row] = ROWS,
    report: Report = _silent,
) -> GlyphSummary:
    """Build the data set in ``out``, or recognise that it is built already.

    ``packages`` is a folder that holds the archives; without it they are fetched into
    ``out/packages``. ``drawings`` is the folder of the same name that another build left, or a
    .tar of it: then no package is read. ``size`` may be several; other sizes that were built
    before stay. ``limit`` keeps about that many pictures, the same number of each row; ``without``
    are rows to leave out. A build that is killed leaves no `summary.json` and goes on from its
    last finished unit.

    Raises:
        ConfigError: a number is less than 1, or there is no such row.
        DataError: a package is absent, damaged or not the pinned one, the renderer is missing, or
            the disk refuses.
    """
    wanted = sorted({size} if isinstance(size, int) else set(size))
    numbers = [("size", one) for one in wanted] + [("workers", workers), ("limit", limit)]
    for name, value in numbers:
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is less than 1", hint=f"give {name}=1 or more")
    chosen = _without(rows, without)
    out.mkdir(parents=True, exist_ok=True)
    engine = LocalEngine(workers=workers)
    if drawings is None:
        folder = out / DRAWINGS
        marks = _draw_rows(
            folder, chosen, packages, out / "packages", limit=limit, engine=engine, report=report
        )
    else:
        folder = drawings
        if drawings.is_file():
            folder = out / DRAWINGS
            unpack_drawings(drawings, folder)
        marks = read_marks(folder, [row.name for row in chosen])
    packs = packs_of(list(marks.values()))
    _forget(out, packs, report=report)
    for side in wanted:
        _draw_pictures(out, folder, side, packs, engine=engine, report=report)
    return _describe(out, folder, marks, packs, report=report)


def _without(rows: Sequence[Row], without: Sequence[str]) -> tuple[Row, ...]:
    names = [row.name for row in rows]
    if unknown := sorted(set(without) - set(names)):
        raise ConfigError(f"no row {unknown[0]!r}", hint=f"rows: {', '.join(names)}")
    if not (chosen := tuple(row for row in rows if row.name not in without)):
        raise ConfigError("no row is left", hint=f"rows: {', '.join(names)}")
    return chosen


def _draw_rows(
    folder: Path,
    rows: tuple[Row, ...],
    packages: Path | None,
    cache: Path,
    *,
    limit: int | None,
    engine: LocalEngine,
    report: Report,
) -> dict[str, Mark]:
    """The drawings of the rows; packages are looked for only if a row is not finished."""
    limits = {}
    if limit is not None:
        limits = {row.name: (limit + i) // len(rows) for i, row in enumerate(rows)}
        rows = tuple(row for row in rows if limits[row.name])
    stage = DrawingStage(folder, rows, {}, limits)
    needed: dict[Package, None] = {}
    for row in rows:
        mark = read_mark(folder, row.name)
        if mark is None or mark.made_from != stage.made_from(row.name):
            needed.update(dict.fromkeys(row.packages))
    archives = {
        package: fetch(package, cache) if packages is None else verify(package, packages)
        for package in needed
    }
    stage = replace(stage, archives=archives)
    return run_stage(stage, [row.name for row in rows], engine=engine, report=report)


def _made_from(packs: Sequence[Pack]) -> str:
    """What the pictures of any size are made from."""
    return fingerprint(PICTURES_VERSION, [[pack.name, pack.sha256] for pack in packs])


def _forget(out: Path, packs: Sequence[Pack], *, report: Report) -> None:
    """Take away the index of pictures that were made from other drawings."""
    for size in sizes(out):
        index = store_folder(out, size) / INDEX
        if _read_object(index).get("made_from") != _made_from(packs):
            (out / SUMMARY).unlink(missing_ok=True)
            index.unlink()
            report(f"the pictures of {size} px were made from other drawings: they do not count")


def _draw_pictures(
    out: Path,
    drawings: Path,
    size: int,
    packs: Sequence[Pack],
    *,
    engine: LocalEngine,
    report: Report,
) -> None:
    folder = store_folder(out, size)
    inputs = {pack.name: pack.sha256 for pack in packs}
    run_stage(
        PictureStage(folder, drawings, size, inputs), list(inputs), engine=engine, report=report
    )
    if not (folder / INDEX).is_file():
        counts = [(pack.name, pack.count) for pack in packs]
        write_index(folder, size, counts, made_from=_made_from(packs))


def _describe(
    out: Path, drawings: Path, marks: Mapping[str, Mark], packs: Sequence[Pack], *, report: Report
) -> GlyphSummary:
    """Write what is known of all pictures, unless that was done."""
    settings = fingerprint(RECORDS_VERSION, _made_from(packs), sizes(out))
    found = _read_object(out / SUMMARY)
    if found.get("settings") == settings and (out / RECORDS).is_file():
        report(f"found a finished build in {out}")
        return GlyphSummary(**{**found, "built": False})
    report("describing the pictures")
    (out / SUMMARY).unlink(missing_ok=True)
    shares = {row: float(mark.stats["share"]) for row, mark in marks.items()}
    records = weighted(
        [replace(one, row=pack.row) for pack in packs for one in read_records(drawings, pack.name)],
        shares,
    )
    lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in records)
    write_atomically(out / RECORDS, "".join(lines).encode("utf-8", "surrogatepass"))
    counts = Counter(record.source for record in records)
    text = attribution_text(credits_of(list(marks.values())), counts)
    write_atomically(out / ATTRIBUTION, text.encode())
    stats = [mark.stats for mark in marks.values()]
    whole = sum(shares.values())
    summary = GlyphSummary(
        pictures=len(records),
        blank=sum(one["blank"] for one in stats),
        failed=sum(one["failed"] for one in stats),
        failures={key: reason for one in stats for key, reason in one["failures"].items()},
        concepts=len({record.name for record in records}),
        rows=dict(Counter(record.row for record in records)),
        shares={row: round(share / whole, 4) for row, share in shares.items()},
        styles=dict(Counter(record.style for record in records)),
        splits=dict(Counter(record.split for record in records)),
        sizes=sizes(out),
        drawings_bytes=sum(size for mark in marks.values() for size, _ in mark.files.values()),
        settings=settings,
    )
    write_json(out / SUMMARY, asdict(summary))
    report(f"built {summary.pictures} pictures of {summary.concepts} concepts in {out}")
    return summary


def weighted(records: Sequence[Record], shares: Mapping[str, float]) -> list[Record]:
    """The records, their weights scaled so that each row gets its share of training draws.

    The mean weight of the training split becomes 1, whichever rows there are.
    """
    train = [record for record in records if record.split == "train"]
    totals: dict[str, float] = {}
    for record in train:
        totals[record.row] = totals.get(record.row, 0.0) + record.weight
    whole = sum(shares[row] for row, total in totals.items() if total)
    factors = {
        row: len(train) * shares[row] / whole / total for row, total in totals.items() if total
    }
    return [
        replace(one, weight=float(f"{one.weight * factors.get(one.row, 1.0):.6g}"))
        for one in records
    ]


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is absent or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
