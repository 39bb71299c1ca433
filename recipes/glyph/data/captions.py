"""Captions from a concept, a style and a colour: articles, short names, templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from recipes.glyph.data.colours import WORDS
from recipes.glyph.data.names import PHRASES
from recipes.glyph.data.split import fraction
from recipes.glyph.data.styles import STYLE_WORDS
from recipes.glyph.data.word_lists import word_list

MOST = 5
FREE_SHARE = 0.25
"""Of captions that begin with "a"."""
FREE_WORDS = (
    *("beautiful", "charming", "favorite", "fine", "funny", "good", "lucky", "neat", "nice"),
    *("perfect", "pretty", "proper", "sweet", "typical", "wonderful"),
)

# Words that take no article although they are not plural.
_MASS_WORDS = word_list("captions-mass-words")
_MASS = frozenset(_MASS_WORDS.split())
_SINGULAR_S = re.compile(r"(ss|us|is|gas|lens|christmas|dice|rhinoceros)$")
_PEOPLE = re.compile(r"(deaf )?(man|woman|person|child|baby|boy|girl) ")
_PROPER = re.compile(
    r"((santa|mrs|mx) claus|aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|"
    r"capricorn|aquarius|pisces|ophiuchus)$"
)
_COUNTED = re.compile(r"(an?|the|two|three|half|\d\S*|men|women) ")
_HEAD_ENDS = re.compile(
    r" (with|of|in|on|and|behind|showing|wearing|over|for|at|without|facing|tilted|to|under|above"
    r"|beside|below|from|holding|inside|between|carrying|against|within) "
)
_PLACED = re.compile(r" (under|above|beside|below|holding|inside|on|in|with|against|within) ")
_VOWEL_SOUND = re.compile(r"(?!uni|use|eu|ewe|one|ufo|ukulele)[aeiou]|hour|honest|x-ray|mri|suv")


def article(name: str) -> str:
    """The name with "a" or "an" before it, or bare if it is plural, a mass or a proper name."""
    head = _HEAD_ENDS.split(name)[0].split()[-1]
    plural = head.endswith("s") and not head.endswith("'s") and not _SINGULAR_S.search(head)
    bare = plural or head in _MASS or _PROPER.match(name)
    if _COUNTED.match(name) or (bare and not _PEOPLE.match(name)):
        return name
    return f"{'an' if _VOWEL_SOUND.match(name) else 'a'} {name}"


def phrase(concept: str) -> str:
    """A concept as it stands in a sentence: "a red apple", "grapes", "a closed padlock"."""
    if concept.startswith("flag of "):
        return f"the {concept}"
    clock = re.fullmatch(r"(\w+) (o'clock|thirty)", concept)
    if clock:
        return f"a clock showing {concept if clock[2] != 'thirty' else f'half past {clock[1]}'}"
    return PHRASES.get(concept) or article(concept)


def spoken(name: str) -> str:
    """A name of key words with the articles of a sentence: "car under a toll gantry"."""
    parts = _PLACED.split(name)
    return " ".join(
        [parts[0], *(article(one) if i % 2 else one for i, one in enumerate(parts[1:]))]
    )


def bare(words: str) -> str:
    """A phrase without its article, as people type it in a list of key words."""
    return re.sub(r"^an? ", "", words)


def freely(caption: str, rng: np.random.Generator) -> str:
    """A caption as it is or, rarely, with a word before its noun that says nothing of the picture.

    Prompts have such words where captions have none, and a model that never met one takes it for
    something to draw.
    """
    name = bare(caption)
    if name == caption or rng.random() >= FREE_SHARE:
        return caption
    return f"a {FREE_WORDS[int(rng.integers(len(FREE_WORDS)))]} {name}"


def coloured(colour: str, name: str) -> str | None:
    """The name with its colour before it, or None if it says a colour already."""
    return None if set(name.split()) & {*WORDS, "grey"} else article(f"{colour} {name}")


def choice(options: Sequence[str], key: str) -> str:
    """One of the options, always the same for the same key."""
    return options[int(fraction(key) * len(options))]


def unique(captions: Iterable[str | None]) -> tuple[str, ...]:
    """The different captions among them, in order, five at most."""
    return tuple(dict.fromkeys(one for one in captions if one))[:MOST]


def _two_words(style: str, key: str) -> tuple[str, str]:
    """Two of a style's phrases, in an order that depends on the key."""
    words = choice(STYLE_WORDS[style], f"style:{key}")
    return words, next(one for one in STYLE_WORDS[style] if one != words)


def painted_captions(
    noun: str, colour: str, style: str, *, key: str, short: str = ""
) -> tuple[str, ...]:
    """Captions of a drawing painted in one colour; ``short`` is another name of the noun.

    Each names the colour and says that it is an icon, so that "a blue car" alone keeps its place
    for pictures with shading and detail.
    """
    words, other = _two_words(style, key)
    name = coloured(colour, noun) or article(noun)
    last = STYLE_WORDS[style][0].rsplit(" ", 1)[1]
    return unique(
        (
            f"{name}, {words}",
            f"{bare(name)}, {other}",
            f"{article(f'{colour} {last}')} of {article(noun)}",
            f"{article(f'{colour} {words}')} of {article(short or noun)}",
            f"{article(noun)} in {colour}, {words}",
        )
    )


def icon_captions(
    concept: str, style: str, *, key: str, thing: bool, other: str = ""
) -> tuple[str, ...]:
    """Captions of an interface icon, each of which says that it is one.

    A ``thing`` takes an article, an action does not; ``other`` is another name of the concept.
    """
    words, second = _two_words(style, key)
    name = phrase(concept) if thing else concept
    again = article(other or concept) if thing else other or concept
    return unique(
        (
            f"an icon of {name}" if thing else f"{article(concept + ' icon')}",
            f"{bare(name)}, {words}",
            f"{article(second)} {'of' if thing else 'for'} {name}",
            f"{again}, {second}",
            f"{bare(again)} icon, {words.removesuffix(' icon')} style",
        )
    )


def flag_captions(concept: str, style: str, *, key: str) -> tuple[str, ...]:
    """Captions of a flag: "the flag of japan", "japan flag"."""
    words, other = _two_words(style, key)
    name = phrase(concept)
    country = re.sub("^flag of (the )?", "", concept)
    return unique(
        (
            name,
            f"{name}, {words}",
            f"{country} flag" if country != concept else concept,
            f"{article(other)} of {country}" if country != concept else f"{concept}, {other}",
            f"{concept}, {other}",
        )
    )


def captions(
    concept: str,
    style: str,
    *,
    key: str,
    names: Sequence[str] = (),
    tags: Sequence[str] = (),
    tone: str = "",
) -> tuple[str, ...]:
    """Three to five captions of a picture, the plainest first; ``key`` varies their wording.

    ``names`` are other everyday names of the concept, the best one first; ``tags`` are words that
    go with it; ``tone`` is the skin tone of the people in it, in words.
    """
    words, other = _two_words(style, key)
    name, short = phrase(concept), article(names[0]) if names else ""
    alias = article(choice(names, f"alias:{key}")) if names else ""
    said = {*WORDS, *name.split()}  # a tag may name a colour the picture does not have
    extra = [
        tag for tag in tags if tag.isascii() and tag.isalpha() and len(tag) > 2 and tag not in said
    ]
    start = int(fraction(f"tags:{key}") * max(len(extra) - 1, 1))
    tail = f", {tone}" if tone else ""
    with_style = choice((name, bare(name)), f"bare:{key}")
    return unique(
        (
            name + tail,
            f"{with_style}{tail}, {words}",
            f"{article(other)} of {short or name}{tail}",
            alias + tail if alias else None,
            ", ".join([name + tail, *extra[start : start + 2]]) if extra else None,
            f"{words} of {name}{tail}",
        )
    )
