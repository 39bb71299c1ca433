"""Clip art from the public domain, drawn by hundreds of people over the years."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.archives import each_member
from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, WORDNET_CREDIT, Credit
from recipes.glyph.data.captions import article, captions, spoken
from recipes.glyph.data.emoji import EmojiTable, read_emoji
from recipes.glyph.data.everyday import common_concept
from recipes.glyph.data.nouns import NounTable, read_nouns
from recipes.glyph.data.packages import EMOJIBASE, OPENCLIPART, WORDNET, Package
from recipes.glyph.data.rows.clipart_names import (
    NO_TAGS,
    clipart_name,
    is_black_and_white,
    wanted_folder,
)
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.suitable import is_suitable
from recipes.glyph.data.svg_files import SvgFile, UnfitDrawing, read_svg

SOURCE = "openclipart"
FOLDER, ENDING = "usr/share/openclipart/svg/", ".svg"

_PUBLIC_DOMAIN = re.compile(r"public-?domain", re.IGNORECASE)
_HEX = re.compile(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")
_NAMED = re.compile(r"\b(red|blue|green|yellow|orange|purple|pink|brown|rgb\()")
GUESSED_WEIGHT = 0.3  # the concept is from key words or the folder, not from the title

CREDIT = Credit(
    source=SOURCE,
    title="Open Clip Art Library 0.18",
    author="its contributors",
    author_url="",
    licence="Public Domain",
    licence_url="",
    package=OPENCLIPART,
)


def is_gray(body: str) -> bool:
    """Whether no colour that a drawing names has a hue."""
    for text in _HEX.findall(body):
        step = len(text) // 3
        channels = [int(text[i : i + step] * (3 - step), 16) for i in range(0, len(text), step)]
        if max(channels) - min(channels) > 12:
            return False
    return not _NAMED.search(body)


def _art(path: str, drawing: SvgFile, nouns: NounTable, table: EmojiTable) -> Art | None:
    """The art of a file; None if it cannot be said what it is."""
    folder, _, file = path.rpartition("/")
    name, titled = clipart_name(folder, file, drawing.title, drawing.keywords, nouns, table)
    if not name or not is_suitable(name):
        return None
    concept = common_concept(spoken(name), table) if titled else name
    gray = is_gray(drawing.icon.body)
    style = "ink" if gray or is_black_and_white(drawing.title, file) else "clipart"
    key = f"{SOURCE}/{path}"
    tags = [word for word in drawing.keywords if titled and word not in NO_TAGS]
    return Art(
        id=key,
        source=SOURCE,
        style=style,
        concept=concept,
        captions=captions(concept, style, key=key, tags=tags),
        variant=style,
        weight=1.0 if titled else GUESSED_WEIGHT,
        icon=drawing.icon,
        colour="" if titled and not gray and article(concept) != concept else None,
    )


@dataclass(frozen=True, kw_only=True)
class ClipartRow:
    """Clip art of things, in colour and in ink."""

    name: str = "clipart"
    share: float = 0.08
    packages: tuple[Package, ...] = (OPENCLIPART, EMOJIBASE, WORDNET)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All clip art that shows a thing with an English name, in the order of the package.

        Raises:
            DataError: an archive is unreadable.
        """
        table = read_emoji(archives[EMOJIBASE])
        nouns = read_nouns(archives[WORDNET])
        art: list[Art] = []
        seen: set[bytes] = set()

        def wanted(name: str) -> bool:
            inside = name.startswith(FOLDER) and name.endswith(ENDING)
            return inside and wanted_folder(name[len(FOLDER) :].rpartition("/")[0])

        for name, data in each_member(archives[OPENCLIPART], wanted):
            path = name[len(FOLDER) : -len(ENDING)]
            try:
                drawing = read_svg(path, data)
            except UnfitDrawing:
                continue
            digest = hashlib.sha256(drawing.icon.body.encode()).digest()
            if digest in seen or not _PUBLIC_DOMAIN.search(drawing.licence):
                continue
            seen.add(digest)
            if (found := _art(path, drawing, nouns, table)) is not None:
                art.append(found)
        return art, [CREDIT, EMOJIBASE_CREDIT, WORDNET_CREDIT]
