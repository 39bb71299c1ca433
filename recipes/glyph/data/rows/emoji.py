"""Emoji of nine permissive sets: one concept in up to nine styles, in every skin tone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from recipes.glyph.data.archives import read_members
from recipes.glyph.data.attribution import EMOJIBASE_CREDIT, FLUENT_3D_CREDIT, Credit, credit_of
from recipes.glyph.data.captions import article, captions
from recipes.glyph.data.emoji import Emoji, EmojiTable, plain_name, read_emoji
from recipes.glyph.data.everyday import concept_of, other_names
from recipes.glyph.data.iconify import Collection, Icon, read_collections
from recipes.glyph.data.packages import EMOJIBASE, FLUENT_3D, ICONIFY, Package
from recipes.glyph.data.rows.fxemoji import FXEMOJI
from recipes.glyph.data.rows.row import Art

FLUENT_3D_SOURCE = "fluent-emoji-3d"
ASSETS, ENDING = "package/assets/", ".webp"

# Set -> our name of its style, in the order of the pictures.
STYLES: Mapping[str, str] = {
    "fluent-emoji-flat": "flat",
    "fluent-emoji": "gradient",
    "noto": "soft",
    "twemoji": "simple",
    "noto-v1": "blob",
    "emojione": "bright",
    "fxemoji": "toy",
    "streamline-emojis": "outline",
}

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
TONE_WEIGHT = 1 / 6  # the five tones of a character weigh less than its plain yellow together
PAIR_WEIGHT = 1 / 30  # twenty-five pairs of tones weigh as much as five tones
FLAG_WEIGHT = 0.08

_DROPPED_SUBGROUPS = {"keypad characters", "skin tones", "hair styles"}
_DROPPED = re.compile(
    r"japanese|regional indicator|symbol for|^input |trade mark|registered|copyright"
)
_SUBGROUP_WEIGHTS = {
    "family": 0.1, "roles & careers": 0.45, "gestures": 0.4, "activities": 0.4, "athletics": 0.4,
    "resting": 0.4, "fantasy": 0.5, "people": 0.6, "hand signs": 0.6, "fingers open": 0.6,
    "fingers closed": 0.6, "finger pointing": 0.6, "hands": 0.6, "hand props": 0.6,
    "shapes & colors": 1.0, "other flags": 0.3, "warning symbols": 0.5,
    "country flags": FLAG_WEIGHT, "subdivision flags": FLAG_WEIGHT,
}  # fmt: skip
_GROUP_WEIGHTS = {"symbols": 0.3, "people & body": 0.7}

# Groups whose characters are one thing each, and those among them that are scenes or have no body.
_THINGS = {
    "smileys & emotion", "animals & nature", "food & drink", "travel & places", "activities",
    "objects",
}  # fmt: skip
_SCENES = {
    "geographic locations", "other places", "hotel", "emotions", "sound", "globes & maps",
    "with hands",
}  # fmt: skip
_NO_THING = re.compile(
    r"(bright|dim|sun behind|fog|cyclone|tornado|wind|comet|milky|umbrella on|fireworks|sparkle"
    r"|night|sunrise|dash|spider web|tanabata|pine decoration|moon viewing|framed picture"
    r"|front view|person|construction|railway|motorway|water wave|house with|houses)"
)
_PLACES_WITH_GROUND = {"ferris wheel", "roller coaster", "carousel horse", "statue of liberty"}
_FACES = {"smileys & emotion", "people & body"}  # nearly all yellow: the word would say nothing


@dataclass(frozen=True, kw_only=True)
class EmojiDrawing:
    """A drawing of a character: one of ``copies`` of it in its set."""

    source: str
    name: str
    emoji: Emoji
    copies: int = 1


def emoji_weight(emoji: Emoji) -> float:
    """The sampling weight of a character: things count more than signs, roles and families."""
    weight = _SUBGROUP_WEIGHTS.get(emoji.subgroup, _GROUP_WEIGHTS.get(emoji.group, 1.0))
    if emoji.group == "people & body" and re.match(r"(wo)?m[ae]n ", emoji.name):
        weight *= 0.5
    if emoji.subgroup == "time" and re.search("o'clock|thirty", emoji.name):
        weight = 0.3
    return weight * (1.0, TONE_WEIGHT, PAIR_WEIGHT)[min(len(emoji.tones), 2)]


def wanted(emoji: Emoji) -> bool:
    """Whether a character belongs in the set: no letters and no parts of other characters."""
    dropped = emoji.subgroup in _DROPPED_SUBGROUPS or _DROPPED.search(emoji.name)
    return bool(emoji.group) and not dropped


def tone_words(tones: tuple[int, ...]) -> str:
    """Skin tones as words: "dark skin tone", "light and dark skin tones", or none."""
    names = list(dict.fromkeys(TONES[tone - 1] for tone in tones))
    return f"{' and '.join(names)} skin tone{'s' * (len(names) > 1)}" if names else ""


def is_cutout(emoji: Emoji) -> bool:
    """Whether a character is one whole thing that can be counted, with nothing around it."""
    concept = concept_of(emoji)
    if emoji.tones or emoji.group not in _THINGS or emoji.subgroup in _SCENES:
        return False
    if emoji.name in _PLACES_WITH_GROUND or _NO_THING.match(emoji.name):
        return False
    return article(concept).startswith(("a ", "an ")) and "showing" not in concept


def _colour(emoji: Emoji, concept: str) -> str | None:
    """Empty if a measured colour may be said before the concept, else None."""
    face = emoji.group in _FACES and emoji.subgroup != "hearts"
    flag = emoji.group == "flags"
    scene = emoji.subgroup in ("geographic locations", "other places")
    noun = article(concept) != concept or concept.endswith("s")
    return "" if noun and not (face or flag or scene) else None


def emoji_art(drawing: EmojiDrawing, *, icon: Icon | None = None, encoded: bytes = b"") -> Art:
    """The art of a drawn character."""
    emoji, source = drawing.emoji, drawing.source
    style = "3d" if source == FLUENT_3D_SOURCE else STYLES[source]
    concept = concept_of(emoji)
    key = f"{source}/{drawing.name}"
    return Art(
        id=key,
        source=source,
        style=style,
        concept=concept,
        captions=captions(
            concept,
            style,
            key=key,
            names=other_names(emoji),
            tags=emoji.tags,
            tone=tone_words(emoji.tones),
        ),
        variant=style,
        weight=round(emoji_weight(emoji) / drawing.copies, 4),
        icon=icon,
        encoded=encoded,
        colour=_colour(emoji, concept),
        cutout=is_cutout(emoji),
    )


def read_table(collections: Mapping[str, Collection], emojibase: Path) -> EmojiTable:
    """The table of characters, with the names that the emoji sets among ``collections`` use."""
    table = read_emoji(emojibase)
    for prefix in STYLES:
        if (collection := collections.get(prefix)) is not None:
            table.learn(collection.codepoints, collection.aliases)
    return table


def _unlisted(name: str) -> Emoji:
    """A thing that a set draws among its emoji although no character stands for it."""
    return Emoji(
        code="", name=plain_name(name), tags=(), group="objects", subgroup="unlisted", tones=()
    )


# Drawings of things that are no characters, in sets of emoji.
_UNLISTED = {
    "noto": ("eraser", "lighthouse", "meteor", "monarch-butterfly", "pickle"),
    "streamline-emojis": (),
}  # fmt: skip


def _find(collection: Collection, icon: str, table: EmojiTable) -> Emoji | None:
    """The character an icon of an emoji set draws, if any is known."""
    name = icon
    if collection.prefix == "fxemoji":
        name = FXEMOJI.get(icon, icon)
    elif collection.prefix == "streamline-emojis":
        name = re.sub(r"-\d$", "", icon)
    elif collection.prefix in ("emojione", "noto-v1"):
        name = re.sub("^flag-for-(flag-)?", "flag-", icon)
    if (emoji := table.find(name, collection.codepoints.get(icon))) is not None:
        return emoji
    return _unlisted(icon) if icon in _UNLISTED.get(collection.prefix, ()) else None


def _drawings(collection: Collection, table: EmojiTable) -> Iterator[EmojiDrawing]:
    """Each wanted icon of an emoji set; several of one character share its weight."""
    found: dict[str, Emoji] = {}
    for icon in sorted(collection.icons):
        emoji = None if icon.endswith("-text") else _find(collection, icon, table)
        if emoji is not None and wanted(emoji):
            found[icon] = emoji
    copies = Counter((emoji.name, emoji.tones) for emoji in found.values())
    for icon, emoji in found.items():
        yield EmojiDrawing(
            source=collection.prefix,
            name=icon,
            emoji=emoji,
            copies=copies[emoji.name, emoji.tones],
        )


@dataclass(frozen=True, kw_only=True)
class EmojiRow:
    """Emoji drawn as vectors, in eight styles."""

    name: str = "emoji"
    share: float = 0.25
    packages: tuple[Package, ...] = (ICONIFY, EMOJIBASE)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All emoji, set by set.

        Raises:
            DataError: an archive is unreadable or lacks a set.
        """
        collections = read_collections(archives[ICONIFY], STYLES)
        table = read_table(collections, archives[EMOJIBASE])
        art = [
            emoji_art(drawing, icon=collection.icons[drawing.name])
            for collection in collections.values()
            for drawing in _drawings(collection, table)
        ]
        return art, [*(credit_of(one, ICONIFY) for one in collections.values()), EMOJIBASE_CREDIT]


@dataclass(frozen=True, kw_only=True)
class Emoji3DRow:
    """Emoji rendered in three dimensions, as pictures of 256 pixels a side."""

    name: str = "emoji_3d"
    share: float = 0.08
    packages: tuple[Package, ...] = (FLUENT_3D, EMOJIBASE)

    def read(self, archives: Mapping[Package, Path]) -> tuple[list[Art], list[Credit]]:
        """All renderings, by code points.

        Raises:
            DataError: an archive is unreadable.
        """
        table = read_emoji(archives[EMOJIBASE])
        members = read_members(
            archives[FLUENT_3D], lambda name: name.startswith(ASSETS) and name.endswith(ENDING)
        )
        art: list[Art] = []
        seen: set[str] = set()
        rendered = {name[len(ASSETS) : -len(ENDING)]: data for name, data in members.items()}
        for code in sorted(rendered):
            emoji = table.find("", code)
            if emoji is not None and wanted(emoji) and emoji.code not in seen:
                seen.add(emoji.code)
                drawing = EmojiDrawing(source=FLUENT_3D_SOURCE, name=code, emoji=emoji)
                art.append(emoji_art(drawing, encoded=rendered[code]))
        return art, [FLUENT_3D_CREDIT, EMOJIBASE_CREDIT]
