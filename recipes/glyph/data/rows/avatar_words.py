"""What the parts of an avatar are called: every attribute of every style, in words."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recipes.glyph.data.captions import article
from recipes.glyph.data.colours import WORDS, name_pixels
from recipes.glyph.data.word_lists import word_list

# Hair, as people name its colours.
_HAIR = word_list("avatar-words-hair")
# Clothes and faces in colours that no basic word fits.
_CLOTHES = word_list("avatar-words-clothes")

# Attribute, its part of the portrait, where its colour is, and words for its values by pattern.
# An empty brace stands for the colour; a value without words is not spoken of.
_RULES = word_list("avatar-words-rules")

# Colour of the whole figure of styles that have no person in them, and what the figure is.
FIGURES: Mapping[str, tuple[str, str]] = {
    "fun-emoji": ("emoji face", "primaryBackgroundColor"),
    "thumbs": ("blob character", "shapeColor"),
}
_TONES = (
    (200, "light skin"),
    (170, "medium-light skin"),
    (130, "medium skin"),
    (85, "medium-dark skin"),
    (0, "dark skin"),
)
_SKIN_KEYS = ("skinColor", "baseColor")
_NO_SKIN = {"croodles", "lorelei", "notionists"}


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Words for the values of one attribute; ``part`` is what of a portrait it belongs to."""

    attribute: str
    part: str
    colour: str
    words: tuple[tuple[str, str], ...]


def _pairs(table: str) -> dict[str, str]:
    rows = (row.partition(" ") for row in re.split(r"\s*[|\n]\s*", table.strip()))
    return {key: words for key, _, words in rows}


def _rules() -> dict[str, list[_Rule]]:
    rules: dict[str, list[_Rule]] = {}
    for line in _RULES.strip().splitlines():
        head, _, table = line.partition(": ")
        style, attribute, part, *colour = head.split()
        rules.setdefault(style, []).append(
            _Rule(
                attribute=attribute,
                part=part,
                colour=colour[0] if colour else "",
                words=tuple(_pairs(re.sub(r"\|(?! )", "\0", table)).items()),
            )
        )
    return rules


_HAIR_WORDS, _CLOTHES_WORDS, _STYLE_RULES = _pairs(_HAIR), _pairs(_CLOTHES), _rules()


@functools.cache
def colour_word(value: str, part: str) -> str:
    """The word for a colour like "#ffc700" of hair or clothes; empty if it has none."""
    code = value.lstrip("#").lower()
    own = _HAIR_WORDS if part == "hair" else _CLOTHES_WORDS
    if code in own:
        return own[code]
    if not re.fullmatch("[0-9a-f]{6}", code):
        return ""
    rgb = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)]], dtype=np.uint8)
    index = int(name_pixels(rgb)[0])
    return WORDS[index] if index < len(WORDS) else ""


def skin_tone(value: object) -> str:
    """The word for a skin colour like "#ecad80" by its luma, of Rec. 601."""
    code = str(value or "").lstrip("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", code):
        return ""
    red, green, blue = (int(code[i : i + 2], 16) for i in (0, 2, 4))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return next(words for least, words in _TONES if luma >= least)


@functools.cache
def _said(rule: _Rule, value: str, colour: str) -> str:
    for pattern, words in rule.words:
        if re.fullmatch(pattern.replace("\0", "|"), value):
            if "{}" not in words:
                return words
            word = colour_word(str(colour or ""), "hair" if rule.part == "hair" else "wear")
            if rule.part == "wear" and not word:
                return ""
            named = words.replace("a {}", article(word) if word else "a").replace("{}", word)
            return " ".join(named.split())
    return ""


def avatar_parts(style: str, extra: Mapping[str, object]) -> dict[str, list[str]]:
    """What is to be said of an avatar, by part: hair, hat, beard, glasses, look, wear, extra, skin.

    ``extra`` are the attributes it was drawn with; absent ones and those that have no words are
    left out.
    """
    parts: dict[str, list[str]] = {}
    for rule in _STYLE_RULES.get(style, ()):
        value = extra.get(rule.attribute)
        if rule.attribute in ("clothing", "body") and not value:
            value = "default"
        if not value or (rule.part == "hair" and "hair" in parts):
            continue
        if words := _said(rule, str(value), str(extra.get(rule.colour) or "")):
            parts.setdefault(rule.part, []).append(words)
    if style not in _NO_SKIN and style not in FIGURES:
        tone = next((skin_tone(extra[key]) for key in _SKIN_KEYS if extra.get(key)), "")
        if tone:
            parts["skin"] = [f"{tone}"]
    return parts
