"""Names of things as they are counted: "three red keys", "two slices of pizza", "four mice"."""

from __future__ import annotations

import re
from collections.abc import Mapping

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR: Mapping[str, str] = {
    "child": "children", "person": "people", "tooth": "teeth", "foot": "feet", "goose": "geese",
    "mouse": "mice", "ox": "oxen", "die": "dice", "cactus": "cacti", "passerby": "passersby",
    "leaf": "leaves", "loaf": "loaves", "half": "halves", "calf": "calves", "elf": "elves",
    "shelf": "shelves", "wolf": "wolves", "knife": "knives", "wife": "wives", "life": "lives",
    "scarf": "scarves", "hoof": "hooves", "thief": "thieves", "bookshelf": "bookshelves",
    "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "mosquito": "mosquitoes",
    "volcano": "volcanoes", "tornado": "tornadoes", "mango": "mangoes", "torpedo": "torpedoes",
    "superhero": "superheroes", "human": "humans", "talisman": "talismans", "german": "germans",
    "quiz": "quizzes", "bus": "buses", "gas": "gases", "yo-yo": "yo-yos",
}  # fmt: skip
# The same for one and for many.
_UNCHANGED = re.compile(
    r"(?:\w*fish|sheep|deer|reindeer|moose|bison|swine|shrimp|squid|salmon|trout|dice|series|"
    r"\w*craft|scissors|glasses|sunglasses|goggles|binoculars|pants|jeans|shorts|trousers|"
    r"headphones|tweezers|pliers|tongs)$"
)
_TAIL = re.compile(
    r" (with|of|in|on|behind|showing|wearing|over|under|above|for|at|without|facing|from|to"
    r"|holding|inside|between|tilted) "
)
_FIRST_WORD = re.compile(r"(man|woman|person|child|baby|boy|girl) (?=\w+ing\b)")


def plural(name: str) -> str:
    """The name of more than one, for the name of one without its article.

    The head is what counts: of "slice of pizza" it is "slice", of "red key" it is "key"; of two
    things named as one, both: "bows and arrows".
    """
    if len(both := name.split(" and ")) == 2 and not _TAIL.search(f"{both[0]} "):
        return " and ".join(plural(one) for one in both)
    end = min((m.start() for m in (_TAIL.search(name), _ing(name)) if m), default=len(name))
    head, tail = name[:end], name[end:]
    before, space, word = head.rpartition(" ")
    return f"{before}{space}{_plural_word(word)}{tail}"


def counted(number: int, name: str) -> str:
    """The name with a number before it: "one red key", "three red keys"."""
    return f"{NUMBERS[number]} {name if number == 1 else plural(name)}"


def _ing(name: str) -> re.Match[str] | None:
    """Where the space is between a person and what they do: "man running"."""
    first = _FIRST_WORD.match(name)
    return None if first is None else re.compile(" ").search(name, first.end(1))


def _plural_word(word: str) -> str:
    lower = word.lower()
    if lower in _IRREGULAR:
        return word[: len(word) - len(lower)] + _IRREGULAR[lower]
    if _UNCHANGED.match(lower):
        return word
    if re.search(r"(?<!hu)(?<!ger)(?<!talis)man$", lower):
        return word[:-2] + "en"
    if re.search(r"[^aeiou]y$", lower):
        return word[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", lower) and not lower.endswith("stomach"):
        return word + "es"
    return word + "s"
