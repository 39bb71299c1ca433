"""Colour icons of interfaces: fifteen sets in twenty-two styles, things before abstractions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, WORDNET_CREDIT, Credit, credit_of
from recipes.glyph.data.captions import article, icon_captions
from recipes.glyph.data.emoji import EmojiTable, plain_name
from recipes.glyph.data.everyday import common_concept, icon_name, is_thing
from recipes.glyph.data.iconify import Collection, read_collections
from recipes.glyph.data.nouns import NounTable, read_nouns
from recipes.glyph.data.packages import EMOJIBASE, ICONIFY, WORDNET, Package
from recipes.glyph.data.rows.emoji import STYLES, read_table
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.suitable import is_suitable


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The icons of a set that are drawn in one style: those whose name ``wanted`` matches.

    The pattern's group is the name of what is shown. ``coloured`` icons have colours of their
    own; the others are drawn in the one or two that the words of the style say.
    """

    prefix: str
    style: str
    wanted: str = r"(.+?)(?:-\d+)*"
    coloured: bool = False


_FLAT = r"(.+?)(?:-\d+)*-flat"
_NOT_FLAT = r"(?!.*-flat$)(.+?)(?:-\d+)*"
_DUO = r"(.+?)(?:-\d+)*-duo"
_NOT_DUO = r"(?!.*-duo$)(.+?)(?:-\d+)*"
PARTS = (
    _Part(prefix="icon-park", style="thick", wanted=r"(.+?)(?:-(?:one|two|three|four|five|six))*"),
    _Part(prefix="streamline-color", style="violet", wanted=_NOT_FLAT),
    _Part(prefix="streamline-color", style="violet-flat", wanted=_FLAT),
    _Part(prefix="streamline-sharp-color", style="sharp", wanted=_NOT_FLAT),
    _Part(prefix="streamline-sharp-color", style="sharp-flat", wanted=_FLAT),
    _Part(prefix="streamline-plump-color", style="plump", wanted=_NOT_FLAT),
    _Part(prefix="streamline-plump-color", style="plump-flat", wanted=_FLAT),
    _Part(prefix="streamline-flex-color", style="curvy", wanted=_NOT_FLAT),
    _Part(prefix="streamline-flex-color", style="curvy-flat", wanted=_FLAT),
    _Part(prefix="streamline-freehand-color", style="freehand"),
    _Part(prefix="streamline-ultimate-color", style="detailed", coloured=True),
    _Part(prefix="streamline-cyber-color", style="blueprint"),
    _Part(prefix="streamline-kameleon-color", style="badge", wanted=_NOT_DUO),
    _Part(prefix="streamline-kameleon-color", style="blue-badge", wanted=_DUO),
    _Part(prefix="streamline-stickies-color", style="doodle", wanted=_NOT_DUO),
    _Part(prefix="streamline-stickies-color", style="lime-doodle", wanted=_DUO),
    _Part(prefix="fluent-color", style="glossy", coloured=True),
    _Part(prefix="glyphs-poly", style="bold-flat", coloured=True),
    _Part(prefix="marketeq", style="two-color-line", wanted=r"(.+?)(?:-(?:\d+|alt|left|right))*"),
    _Part(prefix="meteocons", style="weather-line", wanted=r"(?!.*-fill$)(.+)"),
    _Part(prefix="meteocons", style="weather", wanted=r"(.+)-fill", coloured=True),
    _Part(prefix="flat-color-icons", style="office", wanted=r"(.+?)\d?", coloured=True),
)
PREFIXES = tuple(dict.fromkeys(part.prefix for part in PARTS))

_LOGOS = {"Brand", "Logos"}
_NAMELESS = re.compile(
    r"(?:.|\d[\w ]*|[a-z]\d?|[a-z] \d"
    r"|.*\b(?:beaufort|uv index|code (?:red|green|yellow|orange))\b.*"
    r"|smiley|emoji|layout|box layout|module|interface|line|pathfinder|filter)"
)
THING_WEIGHT, PHRASE_WEIGHT, ABSTRACT_WEIGHT, WEATHER_WEIGHT = 1.0, 0.4, 0.15, 0.4
THING_WORDS = 4

# Names of the business icons that say less than what is drawn.
_OFFICE = {
    "binoculars": "pair of binoculars", "camcorder": "video camera",
    "clapperboard": "clapper board", "empty trash": "trash can", "filing cabinet": "file cabinet",
    "folder": "file folder", "opened folder": "open file folder", "idea": "light bulb",
    "music": "musical note", "old time camera": "old camera", "picture": "framed picture",
    "puzzle": "puzzle piece", "reading": "person reading", "search": "magnifying glass",
    "full battery": "battery", "customer support": "person with headset",
    "video projector": "film projector", 
    "gallery": "picture gallery", "cell phone": "mobile phone", "sports mode": "runner",
}  # fmt: skip


def weather_name(name: str) -> str:
    """A weather icon's key words as English: "overcast night rain" is a night with rain."""
    name = name.removesuffix(" alt")
    if match := re.fullmatch(r"(overcast|extreme|partly cloudy) (day|night)(?: (.+))?", name):
        return f"{match[1]} {match[2]}" + (f" with {match[3]}" if match[3] else "")
    if match := re.fullmatch(r"(overcast|extreme) (?!with|day$|night$)(\w+)", name):
        return f"{match[1]} weather with {match[2]}"
    if match := re.fullmatch(r"(thunderstorms|wind) (?!with|day$|night$)(\w+)", name):
        return f"{match[1]} with {match[2]}"
    if match := re.fullmatch(r"(.+) (day|night)(?: (.+))?", name):
        when = "by day" if match[2] == "day" else "at night"
        return f"{match[1]} {when}" + (f" with {match[3]}" if match[3] else "")
    return name


def _name(part: _Part, icon: str, collection: Collection) -> str:
    """What an icon shows, as plain words; empty if it is not in the part or not to be shown."""
    match = re.fullmatch(part.wanted, icon)
    if match is None or _LOGOS & set(collection.categories.get(icon, ())):
        return ""
    name = plain_name(match[1])
    if part.prefix == "flat-color-icons":
        name = _OFFICE.get(name, name)
    if part.prefix == "meteocons":
        name = weather_name(name)
    return "" if _NAMELESS.fullmatch(name) or not is_suitable(name) else icon_name(name)


def _weight(part: _Part, name: str, nouns: NounTable, table: EmojiTable) -> float:
    """How often to draw an icon: plain things most often, actions and signs least."""
    if nouns.is_plain(name) or is_thing(name, table):
        return THING_WEIGHT
    if part.prefix == "meteocons":
        return WEATHER_WEIGHT
    thing = nouns.head_kind(name) and len(name.split()) <= THING_WORDS
    return PHRASE_WEIGHT if thing else ABSTRACT_WEIGHT


def _part_art(
    part: _Part, collection: Collection, nouns: NounTable, table: EmojiTable
) -> Iterator[Art]:
    """The art of one part; several drawings of one name share its weight."""
    names = {icon: _name(part, icon, collection) for icon in sorted(collection.icons)}
    copies = Counter(names.values())
    for icon, name in names.items():
        if not name:
            continue
        weight = _weight(part, name, nouns, table)
        thing = weight in (THING_WEIGHT, PHRASE_WEIGHT) and part.prefix != "meteocons"
        concept = common_concept(name, table) if weight == THING_WEIGHT else name
        countable = weight == THING_WEIGHT and article(concept) != concept
        key = f"{part.prefix}/{icon}"
        yield Art(
            id=key,
            source=part.prefix,
            style=part.style,
            concept=concept,
            captions=icon_captions(concept, part.style, key=key, thing=thing, other=name),
            variant=part.style,
            weight=round(weight / copies[name], 4),
            icon=collection.icons[icon],
            colour="" if part.coloured and thing else None,
            cutout=countable and part.coloured,
        )


@dataclass(frozen=True, kw_only=True)
class InterfaceRow:
    """Interface icons and small illustrations with colours of their own."""

    name: str = "interface"
    share: float = 0.12
    packages: tuple[Package, ...] = (ICONIFY, EMOJIBASE, WORDNET)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All icons, set by set and style by style.

        Raises:
            DataError: an archive is unreadable or lacks a set.
        """
        collections = read_collections(archives[ICONIFY], (*PREFIXES, *STYLES))
        table = read_table(collections, archives[EMOJIBASE])
        nouns = read_nouns(archives[WORDNET])
        art = [
            one for part in PARTS for one in _part_art(part, collections[part.prefix], nouns, table)
        ]
        credits = [credit_of(collections[prefix], ICONIFY) for prefix in PREFIXES]
        return art, [*credits, EMOJIBASE_CREDIT, WORDNET_CREDIT]
