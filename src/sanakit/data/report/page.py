"""The report as one HTML page that needs no other file, and the contact sheet beside it."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from sanakit.charts import bars, svg, wrapped
from sanakit.data.report.facts import CaptionerFacts, Facts, gather
from sanakit.data.samples import Sample
from sanakit.data.shards import Index, read_keys, read_span
from sanakit.data.sources.places import read_place
from sanakit.data.training_set import REPORT, SHARDS, TrainingSet
from sanakit.data.units import own_folder
from sanakit.errors import DataError
from sanakit.files import write_atomically
from sanakit.images.decode import decode

PAGE, SHEET = "index.html", "contact-sheet.png"
_SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_RATIOS = ((1, 4), (1, 3), (1, 2), (9, 16), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (16, 9), (2, 1),
           (3, 1), (4, 1))  # fmt: skip
_SHARES = (0.05, 0.5, 0.95)
_MOST_BINS = 24
SIDE = 200
_MARGIN, _LINE, _LINES, _COLUMNS = 12, 15, 3, 6
_LETTERS = 34  # of the font at its size in a column
_INK, _PAPER, _FAINT = (30, 30, 34), (255, 255, 255), (236, 236, 240)


def write_report(training_set: TrainingSet, *, choose: int = 24) -> Path:
    """Write `report/index.html` and `report/contact-sheet.png`; gives the path of the page.

    The pictures shown are those of the shards, and of the source where none are built yet. The
    same set gives the same bytes.
    """
    facts = gather(training_set, choose=choose)
    shown = show_samples(facts.chosen, training_set, facts.index)
    folder = training_set.folder / REPORT
    own_folder(folder)
    write_atomically(folder / SHEET, encoded(contact_sheet(shown), "PNG", optimize=True))
    write_atomically(folder / PAGE, page(facts, shown).encode("utf-8", "backslashreplace"))
    return folder / PAGE


def page(facts: Facts, shown: Sequence[Shown]) -> str:
    """The whole page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda image: base64.b64encode(
        encoded(image, "JPEG", quality=85)
    ).decode()
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    words: Counter[int] = Counter()
    for captioner in facts.captioners.values():
        words.update(captioner.words)
    buckets = facts.index.buckets if facts.index else {}
    counts = {
        f"{height} x {width}": sum(shard.samples for shard in shards)
        for (height, width), shards in buckets.items()
    }
    return environment.from_string(template).render(
        facts=facts,
        shown=shown,
        chart=lambda rows, label, upright=True: Markup(svg(bars(rows, upright=upright), label)),
        headline=_headline(facts),
        bucket_counts=list(counts.items()),
        buckets=[
            (name, f"{number:,}", f"{number / sum(counts.values()):.1%}", f"{len(shards):,}",
             _bytes(sum(shard.bytes for shard in shards)))
            for (name, number), shards in zip(counts.items(), buckets.values(), strict=True)
        ],
        sides=_named_sides(facts.sides),
        ratios=_named_ratios(facts.ratios),
        captioners=[
            (name, f"{one.captions:,}", f"{one.captions / max(1, facts.samples):.0%}",
             _quantiles(one.words), _mean_score(one))
            for name, one in facts.captioners.items()
        ],
        words=binned(words),
        scores={name: binned(one.scores) for name, one in facts.captioners.items() if one.scores},
        reasons=[(one.reason, one.count) for one in facts.left_out],
        licences=[(name, f"{count:,}") for name, count in facts.licences.most_common()],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample with a small picture of it; None where its picture cannot be read."""

    sample: Sample
    picture: Image.Image | None
    bucket: tuple[int, int] | None = None


def stored_pictures(
    folder: Path, index: Index, wanted: Iterable[str]
) -> dict[str, tuple[bytes, tuple[int, int]]]:
    """The bytes and the bucket of samples of built shards, by id; ids of no shard are left out."""
    ids = set(wanted)
    found = {}
    for bucket, shards in index.buckets.items():
        for shard in shards:
            keys = read_keys(folder, shard.unit)
            for identity, span in zip(keys.keys, keys.images, strict=True):
                if identity in ids:
                    found[identity] = (read_span(folder / shard.file, span), bucket)
    return found


def show_samples(
    samples: Sequence[Sample], training_set: TrainingSet, index: Index | None, *, side: int = SIDE
) -> list[Shown]:
    """Small pictures of samples: as the shards hold them, without shards from the source."""
    shards, root = training_set.folder / SHARDS, Path(training_set.source)
    stored = stored_pictures(shards, index, (one.id for one in samples)) if index else {}
    shown = []
    for sample in samples:
        data, bucket = stored.get(sample.id, (None, None))
        try:
            data = read_place(root, sample.place) if data is None else data
            picture = Image.fromarray(decode(data, cover=(side, side)).pixels)
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        except DataError:
            shown.append(Shown(sample=sample, picture=None))
            continue
        shown.append(Shown(sample=sample, picture=picture, bucket=bucket))
    return shown


def contact_sheet(shown: Sequence[Shown]) -> Image.Image:
    """All pictures in rows of six, below each the beginning of its first caption."""
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns)
    cell = (SIDE + _MARGIN, SIDE + _LINES * _LINE + _MARGIN + 6)
    sheet = Image.new("RGB", (columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for number, one in enumerate(shown):
        left = _MARGIN + number % columns * cell[0]
        top = _MARGIN + number // columns * cell[1]
        draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_FAINT)
        if one.picture is not None:
            width, height = one.picture.size
            sheet.paste(one.picture, (left + (SIDE - width) // 2, top + (SIDE - height) // 2))
        caption = one.sample.captions[0].text if one.sample.captions else "(no caption)"
        for line, text in enumerate(wrapped(caption, _LETTERS)):
            draw.text((left, top + SIDE + 4 + line * _LINE), text, _INK, font)
    return sheet


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a PNG or JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def binned(
    values: Mapping[int, int] | Mapping[float, int], most: int = _MOST_BINS
) -> list[tuple[str, int]]:
    """Counts of numbers as counts of at most ``most`` equal, round ranges, by where they begin."""
    if not values:
        return []
    low, high = min(values), max(values)
    whole = all(value == int(value) for value in values)
    step = _round_step((high - low) / (most - 2), whole=whole)
    # 0.3 is the third tenth, though 0.3 / 0.1 is below 3 in binary.
    place = {value: math.floor(value / step + 1e-9) for value in values}
    first = place[low]
    counts = [0] * (place[high] - first + 1)
    for value, count in values.items():
        counts[place[value] - first] += count
    return [(f"{(first + number) * step:g}", count) for number, count in enumerate(counts)]


def _round_step(step: float, *, whole: bool) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten; at least 1 for whole numbers."""
    if whole:
        step = max(1.0, step)
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _headline(facts: Facts) -> dict[str, str]:
    numbers = {
        "pictures": f"{facts.samples:,}",
        "left out": f"{facts.refused:,}",
        "of these duplicates": f"{facts.duplicates:,}",
        "captions": f"{facts.captions:,}",
        "pictures without captions": f"{facts.without_captions:,}",
    }
    if facts.index is not None:
        numbers["enlarged to their bucket"] = f"{facts.enlarged:,}"
        size = sum(shard.bytes for shard in facts.index.shards)
        numbers[f"in {len(facts.index.shards):,} shards"] = _bytes(size)
    return numbers


def _named_sides(counts: Counter[int]) -> list[tuple[str, int]]:
    sides: Counter[int] = Counter()
    for side, count in counts.items():
        sides[max(edge for edge in _SIDES if edge <= side)] += count
    used = [edge for edge in _SIDES if min(sides, default=0) <= edge <= max(sides, default=0)]
    return [(str(edge), sides[edge]) for edge in used]


def _named_ratios(ratios: Counter[float]) -> list[tuple[str, int]]:
    """Pictures by the nearest of the ratios that people have names for."""
    counts: Counter[tuple[int, int]] = Counter()
    for ratio, count in ratios.items():
        tall = math.log(max(ratio, 0.01))
        counts[min(_RATIOS, key=lambda one: abs(math.log(one[1] / one[0]) - tall))] += count
    used = [number for number, one in enumerate(_RATIOS) if counts[one]]
    shown = _RATIOS[min(used, default=0) : max(used, default=0) + 1]
    return [(f"{width}:{height}", counts[width, height]) for width, height in shown]


def _quantiles(counts: Counter[int]) -> str:
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values])
    ranks = [math.ceil(share * ends[-1]) for share in _SHARES]
    return ", ".join(str(values[np.searchsorted(ends, rank)]) for rank in ranks)


def _mean_score(facts: CaptionerFacts) -> str:
    number = sum(facts.scores.values())
    mean = sum(score * count for score, count in facts.scores.items()) / max(1, number)
    return f"{mean:.1f}" if number else "-"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
