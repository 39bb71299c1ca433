"""Flags of countries and regions from four sets: "the flag of japan", round, square or wide."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, Credit, credit_of
from recipes.glyph.data.captions import flag_captions
from recipes.glyph.data.emoji import EmojiTable, read_emoji
from recipes.glyph.data.everyday import flag_of
from recipes.glyph.data.iconify import Collection, read_collections
from recipes.glyph.data.packages import EMOJIBASE, ICONIFY, Package
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.word_lists import word_list

# Set and the ending of its names -> our name of the style.
_STYLES = {
    ("flag", "-4x3"): "flag",
    ("flag", "-1x1"): "square-flag",
    ("circle-flags", ""): "round-flag",
    ("flagpack", ""): "wide-flag",
    ("cif", ""): "plain-flag",
}
PREFIXES = tuple(dict.fromkeys(prefix for prefix, _ in _STYLES))

# Regions and unions that have no code of two letters, as the sets abbreviate them.
_REGIONS = word_list("flags-regions")
# Flags of ideas, which are called by their own names.
_OTHERS = {
    "circle-flags/lgbt": "rainbow flag", "circle-flags/lgbt-transgender": "transgender flag",
    "circle-flags/pirate": "pirate flag", "circle-flags/checkered": "chequered flag",
    "circle-flags/lgbt-progress": "progress pride flag", "circle-flags/olympics": "olympic flag",
}  # fmt: skip


def _regions() -> dict[str, str]:
    rows = (row.partition(" ") for row in re.split(r"\s*[|\n]\s*", _REGIONS.strip()))
    return {code: name for code, _, name in rows}


def country_names(table: EmojiTable) -> dict[str, str]:
    """Flags by the two letters of ISO 3166-1, as concepts, with some regions by longer codes."""
    names = {code: flag_of(region) for code, region in _regions().items()}
    for emoji in table.by_code.values():
        if emoji.subgroup == "country flags":
            letters = (chr(int(part, 16) - 0x1F1E6 + ord("a")) for part in emoji.code.split("-"))
            names["".join(letters)] = flag_of(emoji.name.removeprefix("flag of "))
    return names


def _set_art(collection: Collection, names: Mapping[str, str]) -> Iterator[Art]:
    prefix = collection.prefix
    for (owner, ending), style in _STYLES.items():
        if owner != prefix:
            continue
        for icon in sorted(name for name in collection.icons if name.endswith(ending)):
            key = f"{prefix}/{icon}"
            concept = _OTHERS.get(key) or names.get(icon.removesuffix(ending))
            if concept is not None:
                yield Art(
                    id=key,
                    source=prefix,
                    style=style,
                    concept=concept,
                    captions=flag_captions(concept, style, key=key),
                    variant=style,
                    icon=collection.icons[icon],
                    colour=None,
                )


@dataclass(frozen=True, kw_only=True)
class FlagRow:
    """Flags, of which four sets have most countries each."""

    name: str = "flags"
    share: float = 0.02
    packages: tuple[Package, ...] = (ICONIFY, EMOJIBASE)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All flags, set by set.

        Raises:
            DataError: an archive is unreadable or lacks a set.
        """
        collections = read_collections(archives[ICONIFY], PREFIXES)
        names = country_names(read_emoji(archives[EMOJIBASE]))
        art = [one for collection in collections.values() for one in _set_art(collection, names)]
        return art, [*(credit_of(one, ICONIFY) for one in collections.values()), EMOJIBASE_CREDIT]
