"""Small pictures of some samples, and all of them on one sheet with their captions."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sanakit.charts import wrapped
from sanakit.data.images.decode import decode
from sanakit.data.samples import Sample
from sanakit.data.shards import Index, read_keys, read_span
from sanakit.data.sources.places import read_place
from sanakit.data.training_set import SHARDS, TrainingSet
from sanakit.errors import DataError

SIDE = 200
_MARGIN, _LINE, _LINES, _COLUMNS = 12, 15, 3, 6
_LETTERS = 34  # of the font at its size in a column
_INK, _PAPER, _FAINT = (30, 30, 34), (255, 255, 255), (236, 236, 240)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample with a small picture of it; None where its picture cannot be read."""

    sample: Sample
    picture: Image.Image | None
    bucket: tuple[int, int] | None = None


def stored_pictures(
    folder: Path, index: Index, wanted: Iterable[str]
) -> dict[str, tuple[bytes, tuple[int, int]]]:
    """The bytes and the bucket of samples of built shards, by id; ids of no shard are left out.

    Raises:
        DataError: a shard is missing or damaged.
    """
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


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def jpeg(image: Image.Image) -> bytes:
    """A picture as the bytes of a JPEG, for pages."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
