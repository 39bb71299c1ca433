"""Single-colour drawings of things, painted in ten colours so that colour words bind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, WORDNET_CREDIT, Credit, credit_of
from recipes.glyph.data.captions import article, painted_captions, spoken
from recipes.glyph.data.colours import WORDS
from recipes.glyph.data.emoji import EmojiTable, plain_name
from recipes.glyph.data.everyday import common_concept, icon_name, other_names
from recipes.glyph.data.iconify import Collection, read_collections
from recipes.glyph.data.nouns import COUNTABLE, NounTable, read_nouns
from recipes.glyph.data.packages import EMOJIBASE, ICONIFY, WORDNET, Package
from recipes.glyph.data.rows.emoji import STYLES, read_table
from recipes.glyph.data.rows.everyday_nouns import NOUNS
from recipes.glyph.data.rows.row import Art
from recipes.glyph.data.shades import mixed_colours, shade
from recipes.glyph.data.split import fraction
from recipes.glyph.data.suitable import is_suitable


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A set of single-colour icons: which of its names to take, and what a name means.

    ``wanted`` is a pattern whose group is the name. Of a ``literal`` set names say what is drawn,
    and their last word decides; of others only whole names that are nouns are taken.
    """

    prefix: str
    style: str
    wanted: str = r"(.+)"
    literal: bool = False


_SOLID = r"(?!.*-(?:outline|line|light|thin|bold|duotone|rounded|sharp|24px|variant))(.+)"
SOURCES = (
    _Source(prefix="fluent-emoji-high-contrast", style="contrast"),
    _Source(prefix="ph", style="silhouette", wanted=r"(.+)-fill"),
    _Source(prefix="mdi", style="silhouette", wanted=_SOLID),
    _Source(prefix="game-icons", style="silhouette", literal=True),
    _Source(prefix="pinhead", style="silhouette", wanted=_SOLID, literal=True),
    _Source(prefix="roentgen", style="silhouette", literal=True),
    _Source(prefix="fa7-solid", style="silhouette"),
    _Source(prefix="tabler", style="silhouette", wanted=r"(.+)-filled"),
    _Source(prefix="material-symbols", style="silhouette", wanted=_SOLID),
    _Source(prefix="healthicons", style="silhouette", wanted=_SOLID),
    _Source(prefix="emojione-monotone", style="contrast"),
    _Source(prefix="tabler", style="line", wanted=r"(?!.*-filled)(.+)"),
    _Source(prefix="lucide", style="line"),
    _Source(prefix="ph", style="line", wanted=r"(.+)-light"),
    _Source(prefix="hugeicons", style="line", wanted=r"(.+?)(?:-0\d)?"),
    _Source(prefix="streamline-freehand", style="sketch"),
    _Source(prefix="ph", style="duotone", wanted=r"(.+)-duotone"),
    _Source(prefix="solar", style="duotone", wanted=r"(.+)-bold-duotone"),
    _Source(prefix="pixelarticons", style="pixel", wanted=r"(?!.*-(?:sharp|solid))(.+)"),
    _Source(prefix="streamline-pixel", style="pixel", wanted=r"(?:.+-)?(.+)"),
)
PREFIXES = tuple(dict.fromkeys(source.prefix for source in SOURCES))

_ABSTRACT = re.compile(
    r"\d|\b(abstract|tarot|card|rune|perspective|slash|off|plus|minus|alert|check|question|arrow"
    r"|arrows|outline|filled|symbol|icon|letter|japan|map|tile|plain|alt|variant|multiple|number"
    r"|exclamation|mars|venus|baht|euro|dollar|pound|yen|capital|level|small|large|default|user|interface|app|browser"
    r"|file|data|code|network|internet|programming|web|phones?|currency|money)\b"
)
MOST_WORDS = 5

EVERYDAY_WEIGHT, NOUN_WEIGHT, LITERAL_WEIGHT = 4.0, 1.0, 0.6
PICTURES_OF_NOUN = 5


@dataclass(kw_only=True)
class _Noun:
    """A thing to be painted: its drawings as (set, icon, style), the best first."""

    drawings: list[tuple[str, str, str]] = field(default_factory=list)
    everyday: bool = False
    plain: bool = False
    short: str = ""


def _name(source: _Source, icon: str, nouns: NounTable, table: EmojiTable) -> tuple[str, bool]:
    """The name of the thing an icon draws, empty if it is none; and whether it is a plain noun."""
    match = re.fullmatch(source.wanted, icon)
    name = "" if match is None else icon_name(plain_name(match[1]), literal=source.literal)
    if not name or _ABSTRACT.search(name) or not is_suitable(name) or set(name.split()) & _COLOURS:
        return "", False
    if source.prefix in ("fluent-emoji-high-contrast", "emojione-monotone"):
        emoji = table.find(name)
        known = emoji is not None and not emoji.tones and emoji.group in _EMOJI_GROUPS
        return (name, True) if known else ("", False)
    if nouns.is_plain(name) and nouns.kind(name) in COUNTABLE:
        return name, True
    literal = source.literal and nouns.head_kind(name) in COUNTABLE - {"person"}
    short = len(name.split()) <= MOST_WORDS
    return (spoken(name), False) if literal and short else ("", False)


_COLOURS = frozenset({*WORDS, "grey"})
_EMOJI_GROUPS = {"animals & nature", "food & drink", "travel & places", "activities", "objects"}


def _gather(
    collections: Mapping[str, Collection], nouns: NounTable, table: EmojiTable
) -> dict[str, _Noun]:
    """All things to paint, by concept; a style has three drawings of one thing at most."""
    things: dict[str, _Noun] = {}
    taken: set[tuple[str, str]] = set()
    for name, icons in NOUNS.items():
        concept = common_concept(name, table)
        concept = name if set(concept.split()) & _COLOURS else concept
        thing = things.setdefault(concept, _Noun(everyday=True, short=name))
        thing.drawings += [
            (prefix, icon, "silhouette")
            for prefix, icon in icons
            if prefix in collections and icon in collections[prefix].icons
        ]
        taken.update((prefix, icon) for prefix, icon, _ in thing.drawings)
    for source in SOURCES:
        if (collection := collections.get(source.prefix)) is None:
            continue
        for icon in sorted(collection.icons):
            logo = "Brand / Logo" in collection.categories.get(icon, ())
            if logo or (source.prefix, icon) in taken:
                continue
            name, plain = _name(source, icon, nouns, table)
            if not name:
                continue
            concept = common_concept(name, table)
            if set(concept.split()) & _COLOURS:  # "black bird" cannot be painted pink
                concept = name
            thing = things.setdefault(concept, _Noun())
            thing.plain |= plain
            styles = [style for _, _, style in thing.drawings]
            if styles.count(source.style) < 3:
                thing.drawings.append((source.prefix, icon, source.style))
                taken.add((source.prefix, icon))
    return things


def _pictures(concept: str, thing: _Noun) -> Iterator[tuple[str, str, str, str]]:
    """Which drawings of a thing are painted in which colours, as (set, icon, style, colour)."""
    colours = mixed_colours(concept)
    if thing.everyday:  # every colour in every style
        for style in dict.fromkeys(style for _, _, style in thing.drawings):
            drawings = [one for one in thing.drawings if one[2] == style]
            for index, colour in enumerate(colours):
                yield (*drawings[index % len(drawings)], colour)
        return
    drawings = sorted(thing.drawings, key=lambda one: fraction(f"drawing:{concept}:{one}"))
    for index in range(max(PICTURES_OF_NOUN, min(len(drawings), len(colours)))):
        yield (*drawings[index % len(drawings)], colours[index % len(colours)])


@dataclass(frozen=True, kw_only=True)
class RecolouredRow:
    """Thousands of nouns as solid, line, sketched, two-tone and pixel icons in ten colours."""

    name: str = "recoloured"
    share: float = 0.10
    packages: tuple[Package, ...] = (ICONIFY, EMOJIBASE, WORDNET)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All painted drawings, noun by noun.

        Raises:
            DataError: an archive is unreadable or lacks a set.
        """
        collections = read_collections(archives[ICONIFY], (*PREFIXES, *STYLES))
        table = read_table(collections, archives[EMOJIBASE])
        nouns = read_nouns(archives[WORDNET])
        art: list[Art] = []
        for concept, thing in _gather(collections, nouns, table).items():
            pictures = list(_pictures(concept, thing))
            kind = NOUN_WEIGHT if thing.plain else LITERAL_WEIGHT
            weight = (EVERYDAY_WEIGHT if thing.everyday else kind) / max(len(pictures), 1)
            emoji = table.find(concept)
            names = other_names(emoji) if emoji is not None else ()
            countable = (thing.plain or thing.everyday) and article(concept) != concept
            short = thing.short or (names[0] if names else "")
            for prefix, icon, style, colour in pictures:
                key = f"{prefix}/{icon}/{colour}"
                art.append(
                    Art(
                        id=key,
                        source=prefix,
                        style=style,
                        concept=concept,
                        captions=painted_captions(concept, colour, style, key=key, short=short),
                        variant=f"{style}:{colour}",
                        weight=round(weight, 4),
                        icon=collections[prefix].icons[icon],
                        shade=shade(colour, key),
                        colour=colour,
                        cutout=countable and style in ("silhouette", "contrast"),
                    )
                )
        credits = [credit_of(collections[prefix], ICONIFY) for prefix in PREFIXES]
        return art, [*credits, EMOJIBASE_CREDIT, WORDNET_CREDIT]
