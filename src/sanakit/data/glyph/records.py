"""Records of pictures: captions, colour, split and weight, and whom to thank for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sanakit.data.glyph.captions import STYLE_WORDS, captions, painted_captions
from sanakit.data.glyph.colours import dominant_colour, is_pale
from sanakit.data.glyph.pictures import Record
from sanakit.data.glyph.selection import Entry
from sanakit.data.glyph.split import split_of

_FACES = ("smileys & emotion", "people & body")  # nearly all yellow: the word would say nothing

PALE_WEIGHT = 0.2  # they only show on the rarer, darker backgrounds


def describe(
    entries: Sequence[Entry],
    pictures: npt.NDArray[np.uint8],
    licences: Mapping[str, str],
) -> list[Record]:
    """One record for each picture ``N H W 4``, in order; ``licences`` are by source."""
    return [
        _record(entry, picture, licences) for entry, picture in zip(entries, pictures, strict=True)
    ]


def _record(entry: Entry, picture: npt.NDArray[np.uint8], licences: Mapping[str, str]) -> Record:
    emoji = entry.emoji
    sample = np.asarray(
        picture[::2, ::2]
    )  # colour is a matter of areas: every fourth pixel will do
    pale = is_pale(sample)
    group = emoji.group if emoji else ""
    colour = entry.colour or dominant_colour(sample) or ""
    face = group in _FACES and not (emoji and emoji.subgroup == "hearts")
    if entry.colour:
        texts = painted_captions(entry.concept, entry.colour, key=entry.id)
        variant = f"{entry.style}:{entry.colour}"
    else:
        texts = captions(
            entry.concept,
            entry.style,
            key=entry.id,
            group=group,
            tags=emoji.tags if emoji else (),
            colour="" if face else colour,
            toned=entry.toned,
        )
        variant = entry.style
    return Record(
        id=entry.id,
        name=entry.concept,
        style=entry.style,
        style_words=list(STYLE_WORDS[entry.style]),
        captions=texts,
        source=entry.source,
        licence=licences[entry.source],
        # A bee painted blue and a honeybee are one thing: they are held out together.
        split=split_of(emoji.name if emoji else entry.concept, variant),
        weight=round(entry.weight * (PALE_WEIGHT if pale else 1), 4),
        colour=colour,
        pale=pale,
    )
